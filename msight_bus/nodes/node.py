"""The base class of nodes: hooks, running and stopping."""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

from msight_bus.announcements import NodeMetrics, NodeStatus
from msight_bus.bus import Bus
from msight_bus.data.types import payload_type
from msight_bus.errors import BusyError, ClosedError, ConfigError
from msight_bus.events import BusEvent
from msight_bus.nodes.config import NodeConfig
from msight_bus.nodes.node_run import NodeRun


class Node(ABC):
    """A step of a pipeline. Subclass `SourceNode`, `ProcessingNode` or `SinkNode`.

    Attributes:
        config: the node's configuration.
        name: the node's name; the workers of a group share one name.
        logger: ``msight_bus.nodes.<name>``.
    """

    required_topics: ClassVar[tuple[str, ...]] = ()
    unused_topics: ClassVar[tuple[str, ...]] = ()
    type_fields: ClassVar[tuple[str, ...]] = ()
    default_heartbeat_tolerance: ClassVar[float] = 0.0
    coroutines: ClassVar[tuple[str, ...]] = ("on_start", "on_stop")

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Check the methods that the bus awaits.

        Raises:
            TypeError: a method that must be a coroutine function is not one, or ``stream`` is not an async generator.
        """
        super().__init_subclass__(**keywords)
        for name in cls.coroutines:
            method = cls.__dict__.get(name)
            if inspect.isasyncgenfunction(method):
                raise TypeError(f"{cls.__name__}.{name} must return its outputs, as a list, and not `yield` them.")
            if inspect.isfunction(method) and not inspect.iscoroutinefunction(inspect.unwrap(method)):
                raise TypeError(
                    f"{cls.__name__}.{name} is awaited: write `async def {name}`. Run code that computes or blocks in it with "
                    f"`await off_loop(function, ...)`."
                )
        stream = cls.__dict__.get("stream")
        if inspect.iscoroutinefunction(stream) or inspect.isgeneratorfunction(stream):
            raise TypeError(f"{cls.__name__}.stream must be an async generator: write `async def stream` with `yield`.")

    def __init__(self, config: NodeConfig) -> None:
        """
        Args:
            config: must name the topics that this class of node uses, and no other.

        Raises:
            ConfigError: a topic is missing, or is not used by this class; or a type contradicts the class's type parameters.
        """
        kind = type(self).__name__
        if not isinstance(config, NodeConfig):
            raise ConfigError(f"{kind} takes a NodeConfig, not {type(config).__name__}.")
        problems = [
            f"NodeConfig.{field} of {config.name!r} is missing: {kind} needs a topic such as 'site.cam_ne'."
            for field in self.required_topics
            if getattr(config, field) is None
        ]
        problems += [
            f"NodeConfig.{field} of {config.name!r} is {getattr(config, field)!r}, but {kind} does not use it; remove it."
            for field in self.unused_topics
            if getattr(config, field) is not None
        ]
        types: dict[str, Any] = {}
        for field, declared in zip(self.type_fields, type_parameters(type(self)), strict=False):
            if not isinstance(declared, TypeVar) and declared is not Any:
                try:
                    types[field] = _narrowed(getattr(config, field), declared)
                except (TypeError, ConfigError) as error:
                    problems.append(
                        f"NodeConfig.{field} of {config.name!r} must fit the type parameter of {kind}: {error}"
                    )
        if problems:
            raise ConfigError(problems)
        config = replace(config, **types) if types else config
        self.config = config
        self.name = config.name
        self.logger = logging.getLogger(f"msight_bus.nodes.{config.name}")
        self._node_run: NodeRun | None = None

    # -- hooks and methods for subclasses

    async def on_start(self) -> None:  # noqa: B027 - an optional hook
        """Called once before the node subscribes and handles the first item: open files, load a model."""

    async def on_stop(self) -> None:  # noqa: B027 - an optional hook
        """Called once after the last item if `on_start` succeeded, even after an error or a cancellation."""

    def on_event(self, event: BusEvent) -> None:  # noqa: B027 - an optional hook
        """Called with each event of the node: `Gap` and `DeadlineMissed` of its input, `Refused` of its output, `Disconnected`
        and `Reconnected`. Define a plain function; it runs on the event loop and must not block.

        An exception is logged and counted.
        """

    @property
    def bus(self) -> Bus:
        """The bus that the node runs on.

        Raises:
            ClosedError: the node is not running.
        """
        if self._node_run is None or self._node_run.ended:
            raise ClosedError(f"The node {self.name!r} is not running: use its bus from on_start until on_stop.")
        return self._node_run.bus

    def stop(self) -> None:
        """Drain and end the node: stop receiving, handle queued inputs and flush outputs.

        Does nothing if the node is not running. May be called from any thread and from a signal handler.
        """
        if self._node_run is not None:
            self._node_run.stop()

    # -- running

    @property
    def status(self) -> NodeStatus:
        """The node's status; ``STOPPED`` before the first run."""
        return NodeStatus.STOPPED if self._node_run is None else self._node_run.status

    @property
    def left(self) -> int:
        """Number of inputs that are queued, being handled, or not yet acknowledged; of a source, outputs not yet acknowledged."""
        return 0 if self._node_run is None else self._node_run.left

    def metrics(self) -> NodeMetrics:
        """Return the metrics of the current run, or of the last one."""
        return NodeMetrics() if self._node_run is None else self._node_run.metrics()

    async def run(self, bus: Bus) -> None:
        """Run until the node is stopped, its input ends (`Bus.drain`), or an error ends it.

        Args:
            bus: the bus to subscribe and publish on.

        Raises:
            BusyError: the node is already running.
            ConfigError, TopicError: a topic of the configuration contradicts the settings or the broker of the bus.
            BusError: the broker refused a topic or a message, or the bus was closed.
            Exception: an error in the node's code, with ``action_on_error="stop"``, or in a hook.
        """
        if self._node_run is not None and not self._node_run.over.is_set():
            raise BusyError(f"The node {self.name!r} is already running; create another node for a second worker.")
        self.config.check_for(bus)
        level = self.config.logging_level or bus.settings.logging_level
        if level is not None:
            self.logger.setLevel(level.upper())
        on_event = None if type(self).on_event is Node.on_event else self.on_event
        run = self._node_run = NodeRun(self.config, type(self).__name__, bus, self.logger, on_event)
        tolerance = self.config.heartbeat_tolerance
        if tolerance is None:
            tolerance = self.default_heartbeat_tolerance
        with run.drainable():
            async with run.announced(tolerance):
                await self._run_hooks(run)

    async def _run_hooks(self, run: NodeRun) -> None:
        with run.code("on_start"):
            await self.on_start()
        try:
            await self._work(run)
        except BaseException:
            # run() raises the error that ended the node, so an error in on_stop is only logged.
            with suppress(Exception), run.code("on_stop"):
                await self.on_stop()
            raise
        with run.code("on_stop"):
            await self.on_stop()

    @abstractmethod
    async def _work(self, run: NodeRun) -> None:
        """Process items until the node ends; see `SourceNode`, `ProcessingNode` and `SinkNode`."""


def type_parameters(cls: type) -> tuple[Any, ...]:
    """Return the types that a node class gives to the type parameters of `SourceNode`, `ProcessingNode` or `SinkNode`.

    The types can be given by the class or by its bases. A parameter without a type is returned as its ``TypeVar``.
    """
    if "type_fields" in vars(cls):
        return tuple(getattr(cls, "__parameters__", ()))
    found: list[tuple[Any, ...]] = []
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = get_origin(base) or base
        if isinstance(origin, type) and issubclass(origin, Node):
            given = dict(zip(getattr(origin, "__parameters__", ()), get_args(base), strict=False))
            found.append(tuple(_substituted(parameter, given) for parameter in type_parameters(origin)))
    # Of several bases, one can be untyped.
    return tuple(min(each, key=lambda one: isinstance(one, TypeVar)) for each in zip(*found, strict=False))


def _substituted(parameter: Any, given: dict[Any, Any]) -> Any:
    inner = getattr(parameter, "__parameters__", ())
    return parameter[tuple(given.get(one, one) for one in inner)] if inner else given.get(parameter, parameter)


def _narrowed(configured: Any, declared: Any) -> Any:
    """Return the configured type of a payload if it narrows the declared type; without a configured type, the declared type.

    Raises:
        TypeError: the configured type is neither the declared type nor a subclass.
        ConfigError: see `payload_type`.
    """
    known = payload_type(declared)
    if configured is None or configured == declared:
        return declared
    is_json = Annotated in (get_origin(configured), get_origin(declared))
    if is_json or not all(issubclass(one, known.classes) for one in payload_type(configured).classes):
        raise TypeError(f"{payload_type(configured).name} is neither {known.name} nor a subclass of it.")
    return configured
