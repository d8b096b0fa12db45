"""``msight-bus status``: the broker, the nodes, their losses, programs and the lag of groups on one screen."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from msight_bus.announcements import NodeInfo
from msight_bus.bus import connect
from msight_bus.cli.exit_status import FAILED, exit_status
from msight_bus.cli.observing import READING, BackendOption, JsonOption, note, registry_of, settings_of
from msight_bus.cli.tables import Column, print_table
from msight_bus.cli.top import ALL_ANNOUNCED
from msight_bus.doctor.checks import lags, version
from msight_bus.doctor.evidence import Evidence, GroupLag
from msight_bus.doctor.nodes import ended_badly
from msight_bus.errors import AuthenticationError, counted, described
from msight_bus.runtime import run

EXAMPLES = """
Examples:

- `msight-bus status`: the broker and the nodes, after 12 seconds

- `msight-bus status --seconds 1 --json`: one object, for a script
"""

_MOST_ROWS = 20
_LAGS = (
    Column("group", folds_at=8, left=True),
    Column("topic", folds_at=8, left=True),
    Column("lag"),
    Column("uncommitted\npartitions", 2),
    Column("members", 1),
)


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


@dataclass
class Status:
    """What the command has found out about a broker.

    Attributes:
        evidence: settings and nodes.
        found: address, version and PING of the broker.
        lags: lag of each consumer group; ``None`` if unknown.
        others: number of groups that were not read.
        permitted: whether the user may read the announcements of nodes and programs.
    """

    evidence: Evidence
    found: dict[str, Any] = field(default_factory=dict)
    lags: list[GroupLag] | None = None
    others: int = 0
    permitted: bool = True

    async def read(self, seconds: float) -> None:
        """Query the broker, and receive the announcements of nodes and programs for ``seconds``.

        Raises:
            BusError: the broker was not reached, or refused the connection.
        """
        settings = self.evidence.settings
        async with connect(settings) as bus:
            begun = perf_counter()
            await bus.core.backend.ping()
            ping = (perf_counter() - begun) * 1e3
            named = await version(self.evidence)
            self.found = {"backend": settings.backend, "address": settings.address, "version": named, "ping_ms": ping}
            await self._read_lags()
            registry = None
            try:
                registry = await registry_of(bus)
                note(f"Listening for {seconds:g} s; Ctrl-C ends earlier.")
                await asyncio.sleep(0 if registry is None else seconds)
                await bus.core.backend.ping()  # a broker that is down by now is an error
            except AuthenticationError as error:
                self.permitted = False
                note(f"Nodes and programs are not shown: {error}")
            finally:
                self.evidence.found(registry)

    async def _read_lags(self) -> None:
        try:
            read = await lags(self.evidence)
        except Exception as error:  # a client library can raise anything
            note(f"The lag of groups is not shown: {described(error)}")
            return
        if read is not None:
            self.lags, self.others = sorted(read[0], key=lambda one: (-(one.lag or 0), one.group, one.topic)), read[1]

    @property
    def faults(self) -> list[str]:
        """The nodes that are LOST or have ended with an error."""
        return [finding.problem for finding in ended_badly(self.evidence)]

    def show(self, *, as_json: bool) -> None:
        """Print what is known."""
        if not self.found:
            return
        programs = dict(sorted(Counter(info.status.value for info in self.evidence.programs).items()))
        fields = {**self.found, **_summary(self.evidence.nodes), "programs": programs, "faults": self.faults}
        fields |= {
            "groups": None if self.lags is None else [asdict(one) for one in self.lags],
            "more_groups": self.others,
        }
        if not self.permitted:
            fields |= dict.fromkeys((*_summary([]), "programs"))
        if as_json:
            typer.echo(json.dumps(fields))
            return
        out = Console(highlight=False)
        nodes, others = (
            "unknown (not permitted)"
            if fields[kind] is None
            else ", ".join(f"{count:,} {name}" for name, count in fields[kind].items()) or "none announced"
            for kind in ("nodes", "programs")
        )
        totals = []
        if self.permitted:
            totals.append(
                f"Nodes since their start: {counted(fields['missing'], 'message')} lost, {fields['dropped']:,} dropped, "
                f"{counted(fields['errors'], 'error')}; queued now: {fields['queued']:,}"
            )
        where = f"{fields['backend']} {fields['version'] or '(version unknown)'} at {fields['address']}"
        for line in (
            f"Broker: {where}, PING {fields['ping_ms']:.1f} ms",
            f"Nodes: {nodes}",
            f"Programs: {others}",
            *totals,
            *self.faults,
        ):
            out.print(Text(line), soft_wrap=not out.is_terminal)
        if self.lags is not None:
            self._show_lags(out)

    def _show_lags(self, out: Console) -> None:
        rows = [
            [
                one.group,
                one.name,
                "?" if one.lag is None else f"{one.lag:,}",
                f"{one.uncommitted:,}",
                f"{one.members:,}",
            ]
            for one in self.lags or ()
        ]
        if not rows:
            out.print("Groups: none with committed offsets or assigned partitions")
        else:
            print_table(_LAGS, rows[:_MOST_ROWS], out)
        if beyond := sum([len(one.beyond) for one in self.lags or ()]):
            note(f"Committed offsets after the end of a partition: {beyond:,}. `msight-bus doctor` lists them.")
        more = [f"{counted(len(rows) - _MOST_ROWS, 'more line')} (see --json)"] if len(rows) > _MOST_ROWS else []
        if self.others:
            more.append(f"{counted(self.others, 'group')} (more than 1,000, or the user may not describe them)")
        if more:
            note(f"Not shown: {', '.join(more)}.")


def status(
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds to listen for announcements, one each 10 s.")
    ] = ALL_ANNOUNCED,
    json_lines: JsonOption = False,
    backend: BackendOption = None,
) -> None:
    """Show the broker, nodes, programs, losses and Kafka lag.

    *lag*: records in the log after the group's committed offsets, read once at the start; `?`: no committed offset. *uncommitted
    partitions*: assigned partitions without a committed offset, not counted in *lag*. *members*: members with a partition of the
    topic. *deleted*: the topic does not exist. Groups of all clients are shown, the largest lag first. The command joins no group
    and commits nothing. Ctrl-C prints at once what is known. The exit status is 1 if a node is LOST or has ended with an error,
    or if the user has no permission to read the announcements of nodes. `msight-bus doctor` suggests fixes.
    """
    with exit_status():
        known = Status(Evidence(settings_of(backend, READING)))
        try:
            run(known.read(seconds))
        except KeyboardInterrupt:
            known.show(as_json=json_lines)
            raise
        known.show(as_json=json_lines)
        if known.faults or not known.permitted:
            raise typer.Exit(FAILED)
