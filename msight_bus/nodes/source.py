"""Nodes that bring data in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import ClassVar

from msight_bus.errors import ConfigError
from msight_bus.nodes.config import NodeConfig
from msight_bus.nodes.life import Life
from msight_bus.nodes.node import Node
from msight_bus.nodes.outgoing import Outlet, Output
from msight_bus.nodes.sourcing import Sourcing


class SourceNode(Node):
    """Brings data in, from a sensor or a file. Define `get_data` or `stream`.

    With ``action_on_error="continue"``, after an error in it the source is asked again after a pause that grows from
    0.1 s to 10 s while it goes on failing.

    Attributes:
        sensor_name: as it is configured.
    """

    required_topics: ClassVar[tuple[str, ...]] = ("publish_topic_name",)
    unused_topics: ClassVar[tuple[str, ...]] = ("subscribe_topic_name",)
    default_heartbeat_tolerance: ClassVar[float] = 60.0

    def __init__(self, config: NodeConfig) -> None:
        """See `Node`."""
        super().__init__(config)
        own = type(self)
        if (own.get_data is SourceNode.get_data) == (own.stream is SourceNode.stream):
            raise ConfigError(f"{own.__name__} is a SourceNode, so it defines either get_data or stream.")
        self.sensor_name = config.sensor_name

    async def get_data(self) -> Output | Sequence[Output] | None:
        """The next item to publish, a list of items, or ``None`` if there is nothing this time.

        It is cancelled when the node is stopped. Raise ``StopAsyncIteration`` when there will be nothing more.
        """
        raise NotImplementedError

    def stream(self) -> AsyncIterator[Output | Sequence[Output] | None]:
        """The items to publish, as an async generator; the node ends with it. It is closed when the node is stopped."""
        return _Asked(self)

    async def _work(self, life: Life) -> None:
        assert life.config.publish_topic_name is not None
        async with Outlet.open(life, life.config.publish_topic_name, outcomes_known=False) as outlet:
            sourcing = life.inputs = Sourcing(life, self.stream, outlet)
            life.running()
            await sourcing.run()


class _Asked:
    """`SourceNode.get_data`, asked again and again."""

    def __init__(self, node: SourceNode) -> None:
        self._node = node

    def __aiter__(self) -> _Asked:
        return self

    async def __anext__(self) -> Output | Sequence[Output] | None:
        return await self._node.get_data()
