"""The table of checks. A check that fails is a note, and the other checks continue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from typing import Any

from msight_bus.doctor import nodes
from msight_bus.doctor.evidence import Evidence, Finding, GroupLag
from msight_bus.errors import described
from msight_bus.settings import BusSettings

Check = Callable[[Evidence], Iterator[Finding] | AsyncIterator[Finding]]

_WITHIN = 15.0
"""Seconds for one check."""


def message_size(evidence: Evidence) -> Iterator[Finding]:
    """Find a message that is larger than the bus or the broker accepts; Kafka has a limit for each topic (`doctor.kafka`)."""
    size, own = evidence.largest, evidence.settings.limits.max_message_bytes
    setting, change = _LIMITS.get(evidence.settings.backend, ("", ""))
    limit = evidence.max_message_bytes if setting else own
    if own < size:
        limit, setting, change = own, "MSIGHT_MAX_MESSAGE_BYTES", "export MSIGHT_MAX_MESSAGE_BYTES={}"
    if 0 < limit < size:
        problem = f"A message of {size:,} bytes is larger than {limit:,} bytes ({setting})."
        yield Finding(
            "message size",
            problem,
            f"Raise the limit: `{change.format(2 * size, 8 * size, 4 * size)}`, or compress the messages.",
        )


_LIMITS = {
    "redis": (
        "client-output-buffer-limit pubsub",
        'redis-cli CONFIG SET client-output-buffer-limit "pubsub {1} {2} 60"',  # as in doctor.redis
    ),
    "nats": ("max_payload of nats-server.conf, at most 64 MB", "max_payload: {}"),
}
"""The broker's setting and the change that raises it, where a connection has one limit for all topics."""

EVERYWHERE: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    nodes.ended_badly,
    nodes.failing,
    nodes.lost_programs,
    nodes.same_name,
    nodes.same_instance_id,
    nodes.clocks,
    nodes.unpublished,
    nodes.silent,
    message_size,
)

BY_BACKEND = {
    "redis": ("redis", ["output_buffer"]),
    "nats": ("nats", []),
    "kafka": (
        "kafka",
        [
            "advertised_listeners",
            "missing_topics",
            "topic_limits",
            "in_sync_replicas",
            "idle_members",
            "open_transactions",
            "committed_offsets",
        ],
    ),
}
"""Module and checks of each broker: a client library is imported only where its backend is used."""


def checks_of(backend: str) -> list[Check]:
    """Return the checks for a backend."""
    module, names = BY_BACKEND[backend]
    return [*EVERYWHERE, *[_of_module(module, name) for name in names]]


def _question(backend: str, name: str) -> Any:
    """Return the function of a broker's module; ``None`` where there is none, and for the memory backend."""
    return _of_module(BY_BACKEND[backend][0], name) if backend in BY_BACKEND else None


def _of_module(module: str, name: str) -> Any:
    return getattr(import_module(f"msight_bus.doctor.{module}"), name, None)


async def version(evidence: Evidence) -> str | None:
    """Return the version of the broker; ``None`` where unknown."""
    ask = _question(evidence.settings.backend, "version")
    try:
        async with asyncio.timeout(_WITHIN):
            return await ask(evidence.settings) if ask is not None else None
    except Exception:  # a version is not worth an error
        return None


async def topics_of(settings: BusSettings) -> list[str]:
    """Return the topics that the broker lists, by their names there: all on Kafka, those with subscribers on Redis, none on NATS.

    Raises:
        Exception: the broker did not answer or refused; a client library can raise anything.
    """
    ask = _question(settings.backend, "topics")
    return await ask(settings) if ask is not None else []


async def lags(evidence: Evidence) -> tuple[list[GroupLag], int] | None:
    """Return the lag of the consumer groups, and the number of groups that are not read; ``None`` if the backend has none.

    Raises:
        Exception: the broker did not answer or refused; a client library can raise anything.
    """
    if evidence.settings.backend != "kafka":
        return None
    async with asyncio.timeout(_WITHIN):
        found: tuple[list[GroupLag], int] = await _of_module("kafka_groups", "lags")(evidence.settings)
    return found


def run_checks_now(evidence: Evidence) -> list[Finding]:
    """Run the checks that send no request to the broker."""
    findings = [finding for check in EVERYWHERE for finding in check(evidence)]
    _drop_symptoms(findings)
    return findings


async def run_checks(evidence: Evidence, findings: list[Finding]) -> None:
    """Run all checks, one after the other, each within `_WITHIN` seconds, and add what they find to ``findings``."""
    for check in checks_of(evidence.settings.backend):
        try:
            async with asyncio.timeout(_WITHIN):
                found = check(evidence)
                findings += [one async for one in found] if isinstance(found, AsyncIterator) else list(found)
        except Exception as error:  # a client library can raise anything
            name = check.__name__.replace("_", " ")
            problem = f"The check of {name} was not completed: {described(error)}"
            findings.append(
                Finding(name, problem, "Correct the other findings, and run this command again.", fault=False)
            )
    _drop_symptoms(findings)


def _drop_symptoms(findings: list[Finding]) -> None:
    """Remove the finding that no message arrived on a topic if another finding gives the reason."""
    explained = {finding.about for finding in findings if finding.fault and finding.check != "arrival"}
    findings[:] = [finding for finding in findings if finding.check != "arrival" or finding.about not in explained]
