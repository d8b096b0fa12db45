"""Processing nodes and sinks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar

from msight_bus.nodes.node import Node
from msight_bus.nodes.node_publisher import (
    NodePublisher,
    Output,
)
from msight_bus.nodes.node_run import NodeRun
from msight_bus.nodes.ordered_window import Handler, InputWindow
from msight_bus.subscription import SubscriptionOptions


class ProcessingNode(Node):
    """Subscribes to one topic and publishes the results of `process` on another."""

    required_topics: ClassVar[tuple[str, ...]] = ("subscribe_topic_name", "publish_topic_name")
    coroutines: ClassVar[tuple[str, ...]] = (*Node.coroutines, "process")

    @abstractmethod
    async def process(self, data: Any) -> Output | Sequence[Output] | None:
        """Process one input.

        Args:
            data: a ``Data`` value, or ``bytes`` for other payloads; see ``NodeConfig.subscribe_topic_data_type``.

        Returns:
            ``None``, one output, or a list of outputs, to publish.
        """

    async def _work(self, run: NodeRun) -> None:
        await _consume(run, self.process)


class SinkNode(Node):
    """Subscribes to one topic and publishes nothing."""

    required_topics: ClassVar[tuple[str, ...]] = ("subscribe_topic_name",)
    unused_topics: ClassVar[tuple[str, ...]] = ("publish_topic_name",)
    coroutines: ClassVar[tuple[str, ...]] = (*Node.coroutines, "on_message")

    @abstractmethod
    async def on_message(self, data: Any) -> None:
        """Handle one input.

        Args:
            data: a ``Data`` value, or ``bytes`` for other payloads; see ``NodeConfig.subscribe_topic_data_type``.
        """

    async def _work(self, run: NodeRun) -> None:
        await _consume(run, self.on_message)


async def _consume(run: NodeRun, handler: Handler) -> None:
    config, bus = run.config, run.bus
    # With persistence, the node resumes at its group's position; without, a group only shares the load.
    group = config.group_where_kept() if bus.capabilities.persistence else config.group_id
    assert config.subscribe_topic_name is not None
    async with AsyncExitStack() as stack:
        publisher: NodePublisher | None = None
        if config.publish_topic_name is not None:
            publisher = await stack.enter_async_context(NodePublisher.open(run, config.publish_topic_name))
        run.subscription = subscription = bus.core.subscribe(
            (config.subscribe_topic_name,),
            group_id=group,
            queue=config.queue,
            options=SubscriptionOptions("manual", config.deadline, config.lifespan),
            report=run.report,
            on_drop=run.dropped,
        )
        await stack.enter_async_context(subscription)
        window = InputWindow(run, handler, subscription, publisher)
        run.running(group)
        await window.run()
