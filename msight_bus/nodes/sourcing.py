"""Asking a source's code for data and publishing it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from msight_bus.nodes.life import Life, cancellation_requested
from msight_bus.nodes.loop_share import LoopShare
from msight_bus.nodes.outgoing import BUS_IS_OVER, Outlet, Output, as_outputs

_ONLY = 0  # the one handler that a source has
_FIRST_PAUSE = 0.1  # seconds before a sensor that failed is tried again; doubled at each failure in a row
_LONGEST_PAUSE = 10.0

Item = Output | Sequence[Output] | None


class Sourcing:
    """One run of a source (life.Inputs)."""

    queued = 0
    dropped = 0

    def __init__(self, life: Life, stream: Callable[[], AsyncIterator[Item]], outlet: Outlet) -> None:
        """``stream`` begins the node's items anew."""
        self._life = life
        self._stream = stream
        self._outlet = outlet
        self._items: AsyncIterator[Item] | None = None
        self._asking: asyncio.Timeout | None = None

    @property
    def unsettled(self) -> int:
        """Outputs that the broker has not acknowledged."""
        return self._outlet.in_flight

    async def run(self) -> None:
        """Publish items until they end or the node is stopped.

        Raises:
            Exception: an error in the node's code, or of the bus.
        """
        interrupter = asyncio.create_task(self._interrupt(), name=f"msight_bus intake {self._life.config.name}")
        try:
            await self._publish_all()
        finally:
            interrupter.cancel()
            await self._close_items()

    async def _interrupt(self) -> None:
        """When the node is stopped, wait no longer for the next item."""
        await self._life.stopping.wait()
        if self._asking is not None:
            self._asking.reschedule(asyncio.get_running_loop().time())

    async def _publish_all(self) -> None:
        life = self._life
        loop = asyncio.get_running_loop()
        share = LoopShare(f"{life.name}.stream", life.logger, life.config.heartbeat_update_interval)
        items = 0
        pause = _FIRST_PAUSE
        while not life.stopping.is_set():
            asked_at = life.in_hand[_ONLY] = share.begins()
            try:
                outputs = as_outputs(await self._next(), life.config.publish_topic_data_type)
                items += 1
                # The first of each gap + 1 is published, so that a short stream is not an empty one.
                if outputs and (items - 1) % (life.config.gap + 1) == 0:
                    for output in outputs:
                        await self._outlet.send(output)
                    life.meter.took(loop.time() - asked_at)
            except (StopAsyncIteration, _StoppedError):
                return
            except BUS_IS_OVER:
                raise
            except Exception as error:
                life.code_failed(error)
                if life.config.action_on_error == "stop":
                    raise
                await self._close_items()
                life.in_hand.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await life.stopping.wait()
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                pause = _FIRST_PAUSE
                life.in_hand.clear()
                if share.was_held:
                    await share.ended(asked_at)
                await asyncio.sleep(0)  # a source that never waits must not stop the others
            finally:
                life.in_hand.clear()

    async def _next(self) -> Item:
        try:
            async with asyncio.timeout(None) as asking:
                self._asking = asking
                try:
                    if self._items is None:
                        self._items = self._stream()
                    return await anext(self._items)
                finally:
                    self._asking = None
        except TimeoutError:
            if asking.expired():
                raise _StoppedError from None
            raise
        except asyncio.CancelledError as error:
            if cancellation_requested():
                raise
            raise RuntimeError("The node's code raised CancelledError, and nobody had cancelled it.") from error

    async def _close_items(self) -> None:
        items, self._items = self._items, None
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


class _StoppedError(Exception):
    """The node was stopped while it waited for an item."""
