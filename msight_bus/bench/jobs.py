"""The jobs of the two sides of a run. A job runs in a worker process, which sends the outcome to the parent."""

from __future__ import annotations

import asyncio
import struct
from array import array
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

from msight_bus.bench.clock import SPIN_NS, PreciseClock
from msight_bus.bench.sides import Publisher, Subscriber, Tally, Target
from msight_bus.bench.usage import Mark, forget_peak, mark, peak_bytes

RECEIVED, SENT, GO, GIVE_UP = range(4)
"""Fields of the shared counters.

``RECEIVED``: messages that the subscriber has received, which are credits for the publisher. ``SENT``: messages that the
publisher has sent, 0 until it has ended. ``GO``: both sides are ready. ``GIVE_UP``: the run is void; both sides end.
"""

STAMP = struct.Struct("<qq")
"""Start of each payload of a latency run: intended send time in ns, and number."""

_TICK = 0.001
_TICK_OF_RATE = 0.02
"""The same in an open loop, which needs no credits: its processor time is that of the messages."""

_READY = "ready"
_OTHER_FAILED = "The other side of the run (publisher or subscriber) has failed."
_BEHIND_CHUNK = 32
"""Messages that a late sender of an open loop sends in one iteration of the event loop."""

_WINDOW_BYTES = 7_500_000


class VoidError(Exception):
    """The run has no result; the text gives the reason."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.

    Attributes:
        topic: the topic.
        size: payload bytes.
        seconds: duration of the publisher.
        warm_up: seconds at the beginning that are not measured.
        window: maximum number of messages in flight; 0 for a broker that keeps them.
        rate: messages a second of an open loop; 0 for as fast as possible.
        messages: number of messages to send, instead of for ``seconds``.
        from_start: whether to read a log from its beginning.
        patience: seconds without a message after which the rest counts as lost.
        chunk: messages between two reads of the clock; 0: chosen by the size.
    """

    topic: str
    size: int
    seconds: float = 1.0
    warm_up: float = 0.2
    window: int = 0
    rate: float = 0.0
    messages: int = 0
    from_start: bool = False
    patience: float = 10.0
    chunk: int = 0


@dataclass(slots=True)
class Received:
    """Record of a subscriber: marks after the warm-up and at the end, latencies in ns."""

    first: Mark
    last: Mark
    peak: int
    latencies: array[int] = field(default_factory=lambda: array("q"))


@dataclass(slots=True)
class Sent:
    """Record of a publisher: marks after the warm-up and after the confirmation of all messages.

    ``slips`` (ns) are the delays of the clock: from the intended time, or from the end of the send before if that was
    later, until the message was sent. The delay of a slow side is part of its latency.
    """

    first: Mark
    confirmed: Mark
    peak: int
    slips: array[int] = field(default_factory=lambda: array("q"))


async def wait_for_go(counters: memoryview) -> None:
    """Wait until both sides are ready."""
    while not counters[GO]:
        if counters[GIVE_UP]:
            raise VoidError(_OTHER_FAILED)
        await asyncio.sleep(_TICK)


async def subscribe(side: Subscriber, plan: Plan, target: Target, counters: memoryview, tell: Any) -> Received:
    """Receive and count until all sent messages have arrived.

    Raises:
        VoidError: messages were lost, duplicated or damaged, or the other side failed.
    """
    latencies = array("q")
    skip = int(plan.rate * plan.warm_up)
    clock, unpack = perf_counter_ns, STAMP.unpack_from

    def observe(payload: bytes) -> None:
        now = clock()
        intended, number = unpack(payload)
        if number >= skip:
            latencies.append(now - intended)

    tally = Tally(observe if plan.rate else None)
    forget_peak()
    await side.open(target)
    tell(_READY)
    receiving = asyncio.ensure_future(side.receive(tally))
    try:
        first, last = await _watch(tally, receiving, plan, counters)
    finally:
        receiving.cancel()
        await asyncio.wait((receiving,))
        peak = peak_bytes()
        await side.close()
    if tally.size != tally.received * plan.size:
        raise VoidError(
            f"{tally.received} messages arrived with {tally.size} payload bytes together instead of "
            f"{tally.received * plan.size}."
        )
    return Received(first, last, peak, latencies)


async def _watch(tally: Tally, receiving: asyncio.Future[None], plan: Plan, counters: memoryview) -> tuple[Mark, Mark]:
    begun = 0
    first: Mark | None = None
    seen, seen_at = 0, perf_counter_ns()
    while True:
        await asyncio.sleep(_TICK_OF_RATE if plan.rate else _TICK)
        received = tally.received
        counters[RECEIVED] = received
        now = perf_counter_ns()
        if received != seen:
            begun = begun or now
            seen, seen_at = received, now
            if first is None and now - begun >= plan.warm_up * 1e9:
                first = mark(received)
        sent = counters[SENT]
        if sent and received >= sent:
            if received > sent:
                raise VoidError(f"{sent} messages were sent and {received} arrived.")
            if first is None:
                raise VoidError(f"All {sent} messages arrived within the warm-up of {plan.warm_up} s; send more.")
            return first, mark(received)
        if receiving.done():
            receiving.result()
            raise VoidError("The subscriber ended before the publisher.")
        if counters[GIVE_UP]:
            raise VoidError(_OTHER_FAILED)
        if sent and now - seen_at > plan.patience * 1e9:
            raise VoidError(f"{sent} messages were sent and {received} arrived.")


async def publish(side: Publisher, plan: Plan, target: Target, counters: memoryview, tell: Any) -> Sent:
    """Send the messages of the plan and wait for their confirmation.

    Raises:
        VoidError: the other side failed, or nothing was sent after the warm-up.
    """
    forget_peak()
    await side.open(target)
    try:
        tell(_READY)
        await wait_for_go(counters)
        slips = array("q")
        first, count = await (_send_timed(side, plan, slips) if plan.rate else _send_fast(side, plan, counters))
        await side.flush()
        confirmed = mark(count)
        counters[SENT] = count
        return Sent(first, confirmed, peak_bytes(), slips)
    finally:
        await side.close()


def chunk_of(size: int) -> int:
    """Return the number of messages that are sent between two reads of the credits."""
    return max(1, min(256, 256 * 1024 // size))


def window_of(size: int, most: int = 8192) -> int:
    """Return the maximum number of messages in flight: far below the 32 MB at which Redis disconnects a subscriber."""
    return max(4, min(most, _WINDOW_BYTES // (size + 150)))


async def _send_fast(side: Publisher, plan: Plan, counters: memoryview) -> tuple[Mark, int]:
    payload = bytes(range(256)) * (plan.size // 256 + 1)
    payload = payload[: plan.size].replace(b"\n", b" ")
    chunk = plan.chunk or chunk_of(plan.size)
    total = plan.messages or 2**62
    sent = 0
    begun = perf_counter_ns()
    warm, end = begun + int(plan.warm_up * 1e9), begun + int((plan.warm_up + plan.seconds) * 1e9)
    if plan.messages:
        end = 2**62
    first = mark(0) if plan.messages else None
    while sent < total and (now := perf_counter_ns()) < end:
        if first is None and now >= warm:
            first = mark(sent)
        if plan.window and sent - counters[RECEIVED] + chunk > plan.window:
            await asyncio.sleep(0)
            if counters[GIVE_UP]:
                raise VoidError(_OTHER_FAILED)
            continue
        count = min(chunk, total - sent)
        await side.send_many(payload, count)
        sent += count
    if first is None:
        raise VoidError("Nothing was sent after the warm-up.")
    return first, sent


async def _send_timed(side: Publisher, plan: Plan, slips: array[int]) -> tuple[Mark, int]:
    """Send in an open loop: each message has an intended time that does not depend on earlier messages."""
    filling = bytes(max(0, plan.size - STAMP.size))
    total = plan.messages or int(plan.rate * (plan.warm_up + plan.seconds))
    if not total:
        raise VoidError(
            f"No message is due in {plan.warm_up + plan.seconds:g} s at {plan.rate:g}/s; raise the rate or the seconds."
        )
    skip = int(plan.rate * plan.warm_up)
    step = 1e9 / plan.rate
    first = mark(0)
    yielded = 0
    with PreciseClock() as clock:
        begun = perf_counter_ns() + 2_000_000
        for number in range(total):
            intended = begun + int(number * step)
            if step < SPIN_NS:
                yielded = await _let_loop_run(intended, number, yielded)
            due = max(intended, perf_counter_ns())
            await clock.until(intended)
            if number == skip:
                first = mark(number)
            if number >= skip:
                slips.append(perf_counter_ns() - due)
            await side.send(STAMP.pack(intended, number) + filling)
    return first, total


async def _let_loop_run(intended: int, number: int, yielded: int) -> int:
    """Run the event loop between messages that are closer than the resolution of the timer.

    Return the number of the message before which the loop ran last: a late sender sends several messages per iteration.
    """
    if perf_counter_ns() >= intended and number - yielded < _BEHIND_CHUNK:
        return yielded
    await asyncio.sleep(0)
    while perf_counter_ns() < intended:
        await asyncio.sleep(0)
    return number
