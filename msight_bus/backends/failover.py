"""Connect to the first server of a broker that accepts, trying each address of each server in turn.

A refusal (of credentials, a certificate or a permission) is final only when every server that can be reached has refused: one
node that has not reloaded its users must not stop a bus that the other nodes would accept.
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
from msight_bus.settings import HostPort, NatsServer
from msight_bus.settings.error_redaction import chain

S = TypeVar("S")
T = TypeVar("T")

_MAX_ADDRESSES = 8
"""Maximum number of addresses tried for one name; more would leave too little time for each."""

_MAX_LISTED = 5
"""Maximum number of failures listed in one error."""


class Meaning(Enum):
    """The meaning of a broker's error text for the client."""

    TEMPORARY = "temporary"
    """Temporary: the same request may succeed later."""
    CREDENTIALS = "credentials"
    """The broker refused the credentials; the connection cannot be used."""
    PERMISSION = "permission"
    """The broker refused the operation; the connection can be used."""


@dataclass(frozen=True)
class Failure:
    """A failed attempt to connect to one address of one server.

    Attributes:
        error: the error to raise if this failure is the decisive one.
        brief: address and reason, for a list of failures.
        answered: whether the server answered, so that it counts as reachable.
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
    """Connect to the first address that accepts; return the result of ``attempt``.

    Args:
        servers: the servers, in the order in which they are tried.
        within: seconds for all servers. Each server gets a share, divided among its addresses.
        addresses: resolves the addresses of a server.
        attempt: connects to one address of a server.
        explain: converts an exception into a `Failure`. Arguments: the server, the address (``None`` if resolving failed), the
            exception, and the share in seconds.

    Raises:
        AuthenticationError: every server that can be reached refused.
        ConnectionLostError: no server accepted.
        BusError: raised by ``attempt`` or ``explain``; no further server is tried.
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
            except Exception as failure:  # a client library can raise anything if the peer sends invalid data
                failures.append(_caused(explain(server, address, failure, part), failure))
    raise _decide(failures)


def in_turn(candidates: Sequence[T], within: float) -> Iterator[tuple[T, float]]:
    """Yield each candidate with its share of the time, in seconds: the rest of ``within`` divided by the candidates left.

    A candidate that hangs uses only its share; the time that a candidate leaves by failing early is shared by the others.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    for tried, candidate in enumerate(candidates):
        yield candidate, max(0.0, end - loop.time()) / (len(candidates) - tried)


async def look_up(host: str, port: int) -> Sequence[str]:
    """Resolve a host; return at most `_MAX_ADDRESSES` addresses, in the system's order of preference.

    Raises:
        OSError: the name cannot be resolved.
    """
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))[:_MAX_ADDRESSES]


def resolved(server: HostPort | NatsServer, address: str | None) -> str:
    """Return the server as configured or announced, with the address that its name resolved to."""
    return str(server) if address in (None, server.host) else f"{server} ({address})"


def describe(error: BaseException, share: float) -> str:
    """Return the type and text of the original error that a client library wrapped.

    Args:
        error: the exception of the client library.
        share: seconds that the attempt had, named in the text of a timeout.
    """
    errors = [link for link in chain(error) if not isinstance(link, asyncio.CancelledError)]
    systems = [link for link in errors if isinstance(link, OSError) and not isinstance(link, TimeoutError)]
    cause = systems[-1] if systems else error
    if isinstance(cause, TimeoutError | asyncio.TimeoutError):
        return f"TimeoutError: no answer within {share:.3g} s (MSIGHT_CONNECT_TIMEOUT is for all servers)"
    text = (str(cause) or str(error)).rstrip(".")
    return quoted(f"{type(cause).__name__}: {text}" if text else type(cause).__name__)


def is_unreachable(error: BaseException) -> bool:
    """Return whether the network caused ``error``: the peer did not answer."""
    return any(isinstance(link, OSError) for link in chain(error))


def raise_warning(error: BaseException, broker: str) -> None:
    """Raise a `BusError` that names the warning if the program's warning filters turned a warning into ``error``.

    Raises:
        BusError: a `Warning` is among the causes of ``error``.
    """
    for link in chain(error):
        if isinstance(link, Warning):
            raise BusError(
                f"Connecting to {broker} failed because of a warning that this program turns into an error "
                f"({type(link).__name__}: {quoted(link)}); see the filters of the warnings module, or python -W."
            ) from error


def _caused(failure: Failure, cause: Exception) -> Failure:
    failure.error.__cause__ = cause
    return failure


def _decide(failures: Sequence[Failure]) -> BusError:
    """Return the error of the decisive failure, with the other failures in its text."""
    if not failures:
        return ConnectionLostError("No server is configured.")
    refused = [failure for failure in failures if isinstance(failure.error, AuthenticationError)]
    waits = [failure for failure in failures if failure.answered and failure not in refused]
    decisive = (waits or refused or failures)[-1]
    others = [failure.brief for failure in failures if failure is not decisive]
    if not others:
        return decisive.error
    listed = "; ".join(others[:_MAX_LISTED]) + (
        f"; and {len(others) - _MAX_LISTED} more" if len(others) > _MAX_LISTED else ""
    )
    error = type(decisive.error)(f"{decisive.error} Also tried: {listed}.")
    error.__cause__ = decisive.error.__cause__
    return error
