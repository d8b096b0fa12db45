"""Nodes that take a topic's messages: processing nodes and sinks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar

from msight_bus.nodes.handling import Handler, Handling
from msight_bus.nodes.life import Life
from msight_bus.nodes.node import Node
from msight_bus.nodes.outgoing import Outlet, Output


class ProcessingNode(Node):
    """Takes messages of one topic and publishes what `process` makes of them on another."""

    required_topics: ClassVar[tuple[str, ...]] = ("subscribe_topic_name", "publish_topic_name")

    @abstractmethod
    async def process(self, data: Any) -> Output | Sequence[Output] | None:
        """Make something of one input; return ``None``, one output, or a list of outputs, to publish.

        Args:
            data: a ``Data`` value, or ``bytes`` if the payload is none; see ``subscribe_topic_data_type``.
        """

    async def _work(self, life: Life) -> None:
        await _consume(life, self.process)


class SinkNode(Node):
    """Takes messages of one topic and publishes nothing."""

    required_topics: ClassVar[tuple[str, ...]] = ("subscribe_topic_name",)
    unused_topics: ClassVar[tuple[str, ...]] = ("publish_topic_name",)

    @abstractmethod
    async def on_message(self, data: Any) -> None:
        """Use one input.

        Args:
            data: a ``Data`` value, or ``bytes`` if the payload is none; see ``subscribe_topic_data_type``.
        """

    async def _work(self, life: Life) -> None:
        await _consume(life, self.on_message)


async def _consume(life: Life, handler: Handler) -> None:
    config, bus = life.config, life.bus
    # A position in a log belongs to a group, so that a node goes on where it was; elsewhere a group only shares the load.
    life.group = config.group_where_kept() if bus.capabilities.persistence else config.group_id
    assert config.subscribe_topic_name is not None
    async with AsyncExitStack() as stack:
        outlet: Outlet | None = None
        if config.publish_topic_name is not None:
            outlet = await stack.enter_async_context(Outlet.open(life, config.publish_topic_name, outcomes_known=True))
        subscription = await stack.enter_async_context(
            bus.subscribe(
                config.subscribe_topic_name,
                group_id=life.group,
                queue=config.queue,
                ack="manual",
                deadline=config.deadline,
                lifespan=config.lifespan,
            )
        )
        handling = life.inputs = Handling(life, handler, subscription, outlet)
        life.running()
        await handling.run()
