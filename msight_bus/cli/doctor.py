"""``msight-bus doctor``: find problems of settings, broker, nodes and topics, and suggest fixes."""

from __future__ import annotations

import asyncio
import json
import warnings
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from msight_bus.bus import Bus, connect
from msight_bus.cli.completion import complete_topics
from msight_bus.cli.exit_status import FAILED, NOT_REACHED, exit_status, status_of
from msight_bus.cli.observing import (
    READING,
    BackendOption,
    JsonOption,
    Observation,
    note,
    registry_if_permitted,
    settings_of,
)
from msight_bus.cli.top import ALL_ANNOUNCED
from msight_bus.doctor.checks import run_checks, run_checks_now
from msight_bus.doctor.connecting import of_connection, of_setting
from msight_bus.doctor.evidence import Evidence, Finding, matches
from msight_bus.doctor.nodes import ends, total
from msight_bus.errors import BusError, ConfigError, counted
from msight_bus.patterns import check_entries
from msight_bus.runtime import run
from msight_bus.settings import BusSettings
from msight_bus.topics import NODES_TOPIC

EXAMPLES = """
Examples:

- `msight-bus doctor`: check the settings, the connection, the nodes and the broker

- `msight-bus doctor site.cam_ne --observe 5`: why does a message on this topic not arrive?

- `msight-bus doctor --message-bytes 6200000 --observe 1`: does the broker accept messages of 6.2 MB?
"""

_OTHERS_WITHIN = 2.0
"""Seconds for which other topics are observed if nothing arrives on those of the command line."""


async def gather(bus: Bus, evidence: Evidence) -> None:
    """Observe nodes and messages for ``evidence.seconds``; if cancelled, ``evidence`` has what was observed until then.

    Raises:
        BusError: the broker refused a subscription.
    """
    evidence.max_message_bytes = bus.capabilities.max_message_bytes
    registry = await registry_if_permitted(bus)
    note(f"Observing for {evidence.seconds:g} s.")
    announcements = [] if registry is None else [NODES_TOPIC]
    observation = Observation(bus, evidence.add, on_drop=evidence.add)
    begun = bus.clock()
    try:
        await observation.run([*(evidence.topics or [">"]), *announcements], evidence.seconds)
        if evidence.topics and not evidence.seen:
            await Observation(bus, evidence.add, on_drop=evidence.add).run([">"], min(_OTHERS_WITHIN, evidence.seconds))
    except asyncio.CancelledError:
        evidence.seconds = min(evidence.seconds, round(bus.clock() - begun, 1))
        raise
    finally:
        evidence.found(registry)
        counters = observation.counters.items()
        evidence.losses = {topic: {"gaps": one.gaps or 0, "missing": one.missing or 0} for topic, one in counters}


def _lines(evidence: Evidence) -> list[dict[str, object]]:
    """Return what was observed on each topic of the command line."""
    lines: list[dict[str, object]] = []
    for entry in evidence.topics:
        seen = total([one for topic, one in evidence.seen.items() if matches(entry, topic)])
        publishers, subscribers = ends(evidence, entry)
        nodes = [info for info in evidence.running_nodes() if any(matches(one, entry) for one in info.inputs)]
        lost = [each for topic, each in evidence.losses.items() if matches(entry, topic)]
        counts = {"messages": seen.messages, "sessions": len(seen.sessions - {None}), "largest_bytes": seen.largest}
        counts |= {name: sum([each[name] for each in lost]) for name in ("gaps", "missing")}
        counts["dropped"] = sum([info.metrics.dropped for info in nodes])
        lines.append({"topic": entry, "publishers": publishers, "subscribers": subscribers, **counts})
    return lines


def report(
    findings: list[Finding], lines: list[dict[str, object]], *, as_json: bool, interrupted: bool = False
) -> None:
    """Print what was observed and found; ``interrupted``: not all checks were made."""
    out = Console(highlight=False)
    for line in lines:
        if as_json:
            typer.echo(json.dumps(line))
            continue
        names = [", ".join(line[key]) or "none" for key in ("publishers", "subscribers")]  # type: ignore[arg-type]
        messages, sessions = int(str(line["messages"])), int(str(line["sessions"]))
        text = f"{line['topic']}: {counted(messages, 'message')} of {counted(sessions, 'publisher')}; published by: {names[0]}; "
        text += f"subscribed by: {names[1]}; dropped by nodes: {line['dropped']:,}; gaps: {line['gaps']:,}"
        out.print(Text(text), soft_wrap=not out.is_terminal)
    for finding in findings:
        if as_json:
            typer.echo(json.dumps(asdict(finding)))
            continue
        label = "FAULT" if finding.fault else "NOTE"
        style = "red" if finding.fault else "yellow"
        out.print(Text.assemble((f"{label} {finding.check}: ", style), finding.problem), soft_wrap=not out.is_terminal)
        out.print(Text(f"  To do: {finding.advice}"), soft_wrap=not out.is_terminal)
    faults = sum(finding.fault for finding in findings)
    if interrupted:
        note("Interrupted: not all checks were made.")
    if not as_json:
        so_far = " so far" if interrupted else ""
        out.print(f"Faults found{so_far}: {faults}." if faults else f"No fault found{so_far}.")


def doctor(
    topics: Annotated[
        list[str] | None,
        typer.Argument(
            help="Topics and patterns to which the checks are limited; unset: all.", autocompletion=complete_topics
        ),
    ] = None,
    observe: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds for which messages and nodes are observed.")
    ] = ALL_ANNOUNCED,
    message_bytes: Annotated[
        int, typer.Option(min=0, max=2**31, help="Size of the largest message that you send; 0: the largest observed.")
    ] = 0,
    json_lines: JsonOption = False,
    backend: BackendOption = None,
) -> None:
    """Diagnose settings, broker, nodes and topics; suggest fixes.

    Checks the settings, the connection, the limits of the broker, the nodes, the programs and their topics; on Kafka also
    topics, replicas, groups and transactions. Nodes and programs announce themselves every 10 seconds: with a shorter
    `--observe`, not all are found. The command joins no group, creates no topic and commits nothing. Ctrl-C prints at once what
    was found. The exit status is 1 if a fault was found.
    """
    with exit_status():
        chosen = tuple(check_entries(topics)) if topics else ()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                settings, reading = settings_of(backend, {}), settings_of(backend, READING)
            except ConfigError as error:
                report([of_setting(problem) for problem in error.problems], [], as_json=json_lines)
                raise typer.Exit(status_of(error)) from None
        sentences = dict.fromkeys(str(warning.message) for warning in caught)
        findings = [of_setting(sentence) for sentence in sentences]
        evidence = Evidence(settings, chosen, message_bytes, seconds=observe)
        try:
            status = run(_examine(evidence, reading, findings))
        except KeyboardInterrupt:
            report(findings, _lines(evidence), as_json=json_lines, interrupted=True)
            raise
        report(findings, [] if status == NOT_REACHED else _lines(evidence), as_json=json_lines)
        if status or any(finding.fault for finding in findings):
            raise typer.Exit(status or FAILED)


async def _examine(evidence: Evidence, reading: BusSettings, findings: list[Finding]) -> int:
    """Connect, observe and check, and add to ``findings`` what is found; return an exit status."""
    try:
        async with connect(reading) as bus:
            try:
                await gather(bus, evidence)
            except BusError as error:
                advice = "Correct the other findings, and run this command again."
                findings.append(Finding("observation", f"Messages or nodes were not observed: {error}", advice))
            except asyncio.CancelledError:
                findings += run_checks_now(evidence)
                raise
            await run_checks(evidence, findings)
            await bus.core.backend.ping()
    except BusError as error:
        found_before = any(finding.fault and finding.check not in ("settings", "observation") for finding in findings)
        findings.append(await of_connection(error, evidence.settings))
        return 0 if found_before else status_of(error)
    return 0
