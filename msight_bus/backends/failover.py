"""Try the servers of a broker one after another, and each address of a server's name.

A refusal (of credentials, a certificate or a permission) counts when every server that can be reached has refused: one
node that has not reloaded its users yet must not end a bus that two others would take.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from msight_bus.errors import AuthenticationError, BusError, ConnectionLostError, quoted
from msight_bus.settings.discretion import chain

S = TypeVar("S")
T = TypeVar("T")

_MAX_ADDRESSES = 8
"""Addresses of one name that are tried; more would leave too little time for each."""

_MAX_TOLD = 5
"""Failures that one error text lists."""


class Meaning(Enum):
    """What an error text of a broker means for whoever is told it."""

    PASSING = "passing"
    """The broker cannot do it now; the same request may succeed later."""
    CREDENTIALS = "credentials"
    """The broker refused who asks; the connection is of no use."""
    PERMISSION = "permission"
    """The broker refused what was asked; the connection stays."""


@dataclass(frozen=True)
class Failure:
    """Why one address of one server was not taken.

    Attributes:
        error: what is raised if this failure decides.
        brief: the address and the reason, for a list of several failures.
        answered: whether the server answered, so that it counts as one that can be reached.
    """

    error: BusError
    brief: str
    answered: bool


async def connect_first(
    servers: Sequence[S],
    within: float,
    *,
    addresses: Callable[[S], Awaitable[Sequence[str]]],
    attempt: Callable[[S, str], Awaitable[T]],
    explain: Callable[[S, str | None, Exception, float], Failure],
) -> T:
    """Return what ``attempt`` makes of the first address that takes the connection.

    Args:
        servers: in the order in which they are tried.
        within: seconds for all of them. Each server has its share, and each of its addresses a share of that.
        addresses: looks the addresses of a server up.
        attempt: connects to one address of a server.
        explain: makes a failure of an exception; the last argument is the share in seconds. The address is None where
            the look-up failed.

    Raises:
        AuthenticationError: every server that can be reached refused.
        ConnectionLostError: none took the connection.
        BusError: what ``attempt`` or ``explain`` raised itself: no server is to blame for it.
    """
    failures: list[Failure] = []
    loop = asyncio.get_running_loop()
    for server, share in in_turn(servers, within):
        end = loop.time() + share
        try:
            async with asyncio.timeout(share):
                found = await addresses(server)
        except (OSError, UnicodeError) as failure:  # TimeoutError is an OSError
            failures.append(_caused(explain(server, None, failure, share), failure))
            continue
        for address, part in in_turn(found, end - loop.time()):
            try:
                async with asyncio.timeout(part):
                    return await attempt(server, address)
            except BusError:
                raise
            except Exception as failure:  # also what a client library stumbles over when a peer talks nonsense
                failures.append(_caused(explain(server, address, failure, part), failure))
    raise _decide(failures)


def in_turn(candidates: Sequence[T], within: float) -> Iterator[tuple[T, float]]:
    """Each candidate with the seconds it may take: what is left of ``within``, shared with those behind it.

    A candidate that hangs takes its share and no more; one that fails at once leaves its share to the others.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    for tried, candidate in enumerate(candidates):
        yield candidate, max(0.0, end - loop.time()) / (len(candidates) - tried)


async def look_up(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host, in the order of preference that the system gives them.

    Raises:
        OSError: the name has no address.
    """
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))[:_MAX_ADDRESSES]


def describe(error: BaseException, share: float) -> str:
    """Type and text of what went wrong, from behind the wrappers of a client library.

    Args:
        error: what a client library raised.
        share: seconds that the attempt had, told where it had no answer.
    """
    errors = [link for link in chain(error) if not isinstance(link, asyncio.CancelledError)]
    systems = [link for link in errors if isinstance(link, OSError) and not isinstance(link, TimeoutError)]
    cause = systems[-1] if systems else error
    if isinstance(cause, TimeoutError | asyncio.TimeoutError):
        return f"TimeoutError: no answer within {share:.3g} s (MSIGHT_CONNECT_TIMEOUT is for all servers)"
    text = (str(cause) or str(error)).rstrip(".")
    return quoted(f"{type(cause).__name__}: {text}" if text else type(cause).__name__)


def is_unreachable(error: BaseException) -> bool:
    """Whether the network, not the peer, is to blame: there was no answer at all."""
    return any(isinstance(link, OSError) for link in chain(error))


def raise_warning(error: BaseException, broker: str) -> None:
    """Raise a warning that the program has turned into an error as what it is: no server is to blame for it.

    Raises:
        BusError: there is one among the causes of ``error``.
    """
    for link in chain(error):
        if isinstance(link, Warning):
            raise BusError(
                f"Connecting to {broker} was ended by a warning that this program turns into an error "
                f"({type(link).__name__}: {quoted(link)}); see the filters of the warnings module, or python -W."
            ) from error


def _caused(failure: Failure, cause: Exception) -> Failure:
    failure.error.__cause__ = cause
    return failure


def _decide(failures: Sequence[Failure]) -> BusError:
    """Return the error of the failure that decides, with the others in its text."""
    if not failures:
        return ConnectionLostError("No server is configured.")
    refused = [failure for failure in failures if isinstance(failure.error, AuthenticationError)]
    waits = [failure for failure in failures if failure.answered and failure not in refused]
    decisive = (waits or refused or failures)[-1]
    others = [failure.brief for failure in failures if failure is not decisive]
    if not others:
        return decisive.error
    told = "; ".join(others[:_MAX_TOLD]) + (f"; and {len(others) - _MAX_TOLD} more" if len(others) > _MAX_TOLD else "")
    error = type(decisive.error)(f"{decisive.error} Also tried: {told}.")
    error.__cause__ = decisive.error.__cause__
    return error
