"""Check that a repeatedly raised error is a new object each time, without references to earlier calls."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable

TIMES = 1000
FRAMES = 200
"""Upper bound of the frames of one call, causes included; a reused error would gain frames with each call."""


def frames(error: BaseException | None) -> int:
    """Return the number of frames of an error and its causes."""
    count = 0
    while error is not None:
        count += len(list(traceback.walk_tb(error.__traceback__)))
        error = error.__cause__ or error.__context__
    return count


async def error_of(call: Callable[[], Awaitable[object]]) -> Exception | None:
    """Return the error that a call raises."""
    try:
        await call()
    except Exception as error:
        return error
    return None


async def assert_does_not_grow(call: Callable[[], Awaitable[object]], kind: type[Exception]) -> None:
    """Check that many calls raise separate errors of exactly ``kind`` with the same text."""
    last: Exception | None = None
    raised_again = 0
    for _ in range(TIMES):
        error = await error_of(call)
        assert type(error) is kind, repr(error)
        assert last is None or str(error) == str(last)
        raised_again += error is last
        last = error
    assert frames(last) < FRAMES
    assert not raised_again
