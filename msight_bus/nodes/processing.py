"""Processing nodes and sinks."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AsyncExitStack
from typing import ClassVar, Generic

from msight_bus.data.types import DATA, payload_type
from msight_bus.nodes.node import Node
from msight_bus.nodes.node_publisher import In, NodePublisher, Out, Result
from msight_bus.nodes.node_run import NodeRun
from msight_bus.nodes.ordered_window import Handler, InputWindow
from msight_bus.subscription import SubscriptionOptions


class ProcessingNode(Node, Generic[In, Out]):
    """Subscribes to topics and publishes the results of `process` on another topic.

    ``ProcessingNode[In, Out]`` decodes its inputs to ``In`` and checks that its outputs are an ``Out``; the types are those of
    `Bus.subscribe`.
    """

    type_fields: ClassVar[tuple[str, ...]] = ("subscribe_topic_data_type", "publish_topic_data_type")
    required_topics: ClassVar[tuple[str, ...]] = ("subscribe_topic_name", "publish_topic_name")
    coroutines: ClassVar[tuple[str, ...]] = (*Node.coroutines, "process")

    @abstractmethod
    async def process(self, data: In) -> Result[Out]:
        """Process one input.

        Args:
            data: an ``In``. In an untyped node: a ``Data`` value, or ``bytes`` for other payloads; see
                ``NodeConfig.subscribe_topic_data_type``.

        Returns:
            ``None``, one output, or a list of outputs, to publish.
        """

    async def _work(self, run: NodeRun) -> None:
        await _consume(run, self.process)


class SinkNode(Node, Generic[In]):
    """Subscribes to topics and publishes nothing. ``SinkNode[In]`` decodes its inputs to ``In``."""

    type_fields: ClassVar[tuple[str, ...]] = ("subscribe_topic_data_type",)
    required_topics: ClassVar[tuple[str, ...]] = ("subscribe_topic_name",)
    unused_topics: ClassVar[tuple[str, ...]] = ("publish_topic_name",)
    coroutines: ClassVar[tuple[str, ...]] = (*Node.coroutines, "on_message")

    @abstractmethod
    async def on_message(self, data: In) -> None:
        """Handle one input.

        Args:
            data: see `ProcessingNode.process`.
        """

    async def _work(self, run: NodeRun) -> None:
        await _consume(run, self.on_message)


async def _consume(run: NodeRun, handler: Handler) -> None:
    config, bus = run.config, run.bus
    # With persistence, the node resumes at its group's position; without, a group only shares the load.
    group = config.group_where_kept() if bus.capabilities.persistence else config.group_id
    kind = config.subscribe_topic_data_type
    async with AsyncExitStack() as stack:
        publisher: NodePublisher | None = None
        if config.publish_topic_name is not None:
            publisher = await stack.enter_async_context(NodePublisher.open(run, config.publish_topic_name))
        run.subscription = subscription = bus.core.subscribe(
            config.inputs,
            group_id=group,
            queue=config.queue,
            start="latest" if config.start is None else config.start,
            options=SubscriptionOptions(
                "manual", config.deadline, config.lifespan, DATA if kind is None else payload_type(kind)
            ),
            report=run.report,
            on_drop=run.dropped,
            instance_id=config.instance_id,
        )
        await stack.enter_async_context(subscription)
        window = InputWindow(run, handler, subscription, publisher)
        run.running(group)
        await window.run()
