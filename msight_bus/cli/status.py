"""``msight-bus status``: the broker, the nodes and their losses on one screen."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from msight_bus.bus import connect
from msight_bus.cli.doctor import registry_of
from msight_bus.cli.exit_status import FAILED, exit_status
from msight_bus.cli.observing import READING, BackendOption, JsonOption, note, settings_of
from msight_bus.cli.top import ALL_ANNOUNCED
from msight_bus.doctor.checks import version
from msight_bus.doctor.evidence import Evidence
from msight_bus.doctor.nodes import ended_badly
from msight_bus.errors import AuthenticationError
from msight_bus.registry import NodeInfo
from msight_bus.runtime import run
from msight_bus.settings import BusSettings

EXAMPLES = """
Examples:

- `msight-bus status`: the broker and the nodes, after 12 seconds

- `msight-bus status --seconds 1 --json`: one object, for a script
"""


def _summary(nodes: list[NodeInfo]) -> dict[str, Any]:
    """Return the number of nodes by status, and the totals of their metrics since their start."""
    metrics = [info.metrics for info in nodes]
    statuses = Counter(info.status.value for info in nodes)
    return {
        "nodes": dict(sorted(statuses.items())),
        "missing": sum([one.missing or 0 for one in metrics]),
        "dropped": sum([one.dropped for one in metrics]),
        "queued": sum([one.queued for one in metrics]),
        "errors": sum([one.errors + one.undecodable for one in metrics]),
    }


async def _status(reading: BusSettings, seconds: float, *, as_json: bool) -> bool:
    """Print the status; return whether a node is LOST or has ended with an error."""
    evidence = Evidence(reading)
    async with connect(reading) as bus:
        begun = perf_counter()
        await bus.core.backend.ping()
        ping = (perf_counter() - begun) * 1e3
        found = await version(evidence)
        try:
            registry = await registry_of(bus)
            note(f"Listening for {seconds:g} s; Ctrl-C ends without a status.")
            await asyncio.sleep(0 if registry is None else seconds)
            evidence.nodes = [] if registry is None else list(registry)
        except AuthenticationError as error:
            note(f"Nodes are not shown: {error}")
    faults = [finding.problem for finding in ended_badly(evidence)]
    broker = {"backend": reading.backend, "address": reading.address, "version": found, "ping_ms": ping}
    fields = {**broker, **_summary(evidence.nodes), "faults": faults}
    if as_json:
        typer.echo(json.dumps(fields))
        return bool(faults)
    nodes = ", ".join(f"{count:,} {name}" for name, count in fields["nodes"].items()) or "none announced"
    out = Console(highlight=False)
    for line in (
        f"Broker: {reading.backend} {found or '(version unknown)'} at {reading.address}, PING {ping:.1f} ms",
        f"Nodes: {nodes}",
        f"Since their start: {fields['missing']:,} messages lost, {fields['dropped']:,} dropped, {fields['errors']:,} errors; "
        f"queued now: {fields['queued']:,}",
        *faults,
    ):
        out.print(Text(line), soft_wrap=not out.is_terminal)
    return bool(faults)


def status(
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds to listen; each node announces itself every 10.")
    ] = ALL_ANNOUNCED,
    json_lines: JsonOption = False,
    backend: BackendOption = None,
) -> None:
    """Show the broker, the nodes and their losses on one screen.

    The exit status is 1 if a node is LOST or has ended with an error. `msight-bus doctor` says what to do.
    """
    with exit_status():
        if run(_status(settings_of(backend, READING), seconds, as_json=json_lines)):
            raise typer.Exit(FAILED)
