"""What one side does in one run. A job runs in a worker process, and its outcome goes back to the parent."""

from __future__ import annotations

import asyncio
import struct
from array import array
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

from msight_bus.bench.board import GIVE_UP, GO, RECEIVED, SENT
from msight_bus.bench.candidates import Publisher, Subscriber, Tally, Target
from msight_bus.bench.clock import SPIN_NS, PreciseClock
from msight_bus.bench.usage import Mark, forget_peak, mark, peak_bytes

STAMP = struct.Struct("<qq")
"""In front of each payload of a latency run: intended send time and number."""

_TICK = 0.001
_READY = "ready"
_BEHIND_CHUNK = 32
"""Messages that a late sender of an open loop sends in one turn of the event loop."""


class VoidError(Exception):
    """The run counts for nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.

    Attributes:
        topic: where.
        size: payload bytes.
        seconds: how long the sender sends.
        warm_up: seconds at the beginning that count for nothing.
        window: messages that may be on their way at most; 0 for a broker that keeps them.
        rate: messages a second of an open loop; 0 for as fast as it goes.
        messages: send exactly so many, instead of for ``seconds``.
        from_start: read a log from its beginning.
        patience: seconds without a message after which the rest is lost.
        chunk: messages between two looks at the clock; 0 for as many as suit the size.
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
    """What a subscriber saw: marks after warm-up and at the end, latencies in ns."""

    first: Mark
    last: Mark
    peak: int
    latencies: array[int] = field(default_factory=lambda: array("q"))


@dataclass(slots=True)
class Sent:
    """What a publisher did: marks after warm-up, when all was handed over and when all was confirmed.

    ``slips`` (ns) are those of the clock: from the intended time, or from when the side was done with the message
    before if that was later, until the message was sent. A side that is slow itself pays for it in its latency.
    """

    first: Mark
    handed: Mark
    confirmed: Mark
    peak: int
    slips: array[int] = field(default_factory=lambda: array("q"))


async def wait_for_go(board: memoryview) -> None:
    """Until both sides are ready."""
    while not board[GO]:
        if board[GIVE_UP]:
            raise VoidError("The other side has failed.")
        await asyncio.sleep(_TICK)


async def subscribe(side: Subscriber, plan: Plan, target: Target, board: memoryview, tell: Any) -> Received:
    """Count until as many have come as were sent."""
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
        first, last = await _watch(tally, receiving, plan, board)
    finally:
        receiving.cancel()
        await asyncio.wait((receiving,))
        peak = peak_bytes()
        await side.close()
    if tally.size != tally.received * plan.size:
        raise VoidError(f"{tally.received} messages of {plan.size} bytes came as {tally.size} bytes.")
    return Received(first, last, peak, latencies)


async def _watch(tally: Tally, receiving: asyncio.Future[None], plan: Plan, board: memoryview) -> tuple[Mark, Mark]:
    begun = 0
    first: Mark | None = None
    seen, seen_at = 0, perf_counter_ns()
    while True:
        await asyncio.sleep(_TICK)
        received = tally.received
        board[RECEIVED] = received
        now = perf_counter_ns()
        if received != seen:
            begun = begun or now
            seen, seen_at = received, now
            if first is None and now - begun >= plan.warm_up * 1e9:
                first = mark(received)
        sent = board[SENT]
        if sent and received >= sent:
            if received > sent:
                raise VoidError(f"{received} messages came and {sent} were sent.")
            if first is None:
                raise VoidError(f"All {sent} messages came before the warm-up of {plan.warm_up} s was over; send more.")
            return first, mark(received)
        if receiving.done():
            receiving.result()
            raise VoidError("The subscriber ended by itself.")
        if board[GIVE_UP]:
            raise VoidError("The other side has failed.")
        if sent and now - seen_at > plan.patience * 1e9:
            raise VoidError(f"{sent} messages were sent and {received} came.")


async def publish(side: Publisher, plan: Plan, target: Target, board: memoryview, tell: Any) -> Sent:
    """Send by the plan."""
    forget_peak()
    await side.open(target)
    try:
        tell(_READY)
        await wait_for_go(board)
        slips = array("q")
        first, handed = await (_send_timed(side, plan, slips) if plan.rate else _send_fast(side, plan, board))
        await side.flush()
        confirmed = mark(handed.messages)
        board[SENT] = handed.messages
        return Sent(first, handed, confirmed, peak_bytes(), slips)
    finally:
        await side.close()


def chunk_of(size: int) -> int:
    """Messages that are sent between two looks at the credits."""
    return max(1, min(256, 256 * 1024 // size))


async def _send_fast(side: Publisher, plan: Plan, board: memoryview) -> tuple[Mark, Mark]:
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
        if plan.window and sent - board[RECEIVED] + chunk > plan.window:
            await asyncio.sleep(0)
            if board[GIVE_UP]:
                raise VoidError("The other side has failed.")
            continue
        count = min(chunk, total - sent)
        await side.send_many(payload, count)
        sent += count
    if first is None:
        raise VoidError("The warm-up was never over.")
    return first, mark(sent)


async def _send_timed(side: Publisher, plan: Plan, slips: array[int]) -> tuple[Mark, Mark]:
    """An open loop: each message has its intended time, whether the one before it was slow or not."""
    filling = bytes(max(0, plan.size - STAMP.size))
    total = plan.messages or int(plan.rate * (plan.warm_up + plan.seconds))
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
    return first, mark(total)


async def _let_loop_run(intended: int, number: int, yielded: int) -> int:
    """Let the loop write and read while messages follow each other so closely that the clock only spins.

    Returns the number of the message at which the loop ran last. A sender that is late sends a few before the next turn.
    """
    if perf_counter_ns() >= intended and number - yielded < _BEHIND_CHUNK:
        return yielded
    await asyncio.sleep(0)
    while perf_counter_ns() < intended:
        await asyncio.sleep(0)
    return number
