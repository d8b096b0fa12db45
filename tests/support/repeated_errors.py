"""An error that is raised again and again must not grow: each time it is a new one, and nothing of the calls before stays."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable

TIMES = 1000
FRAMES = 200
"""More than any call is deep, causes included; an error that is raised again grows by one call each time."""


def frames(error: BaseException | None) -> int:
    """Frames that an error keeps, with those of its causes."""
    count = 0
    while error is not None:
        count += len(list(traceback.walk_tb(error.__traceback__)))
        error = error.__cause__ or error.__context__
    return count


async def error_of(call: Callable[[], Awaitable[object]]) -> Exception | None:
    """What a call raises."""
    try:
        await call()
    except Exception as error:
        return error
    return None


async def assert_does_not_grow(call: Callable[[], Awaitable[object]], kind: type[Exception]) -> None:
    """Each of many calls raises an error of its own, of exactly ``kind``, with the same text."""
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
