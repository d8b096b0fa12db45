"""The commands of ``msight-bus``."""

from __future__ import annotations

import math
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from msight_bus import __version__
from msight_bus.cli import bench, doctor, ping, pub, rates, settings, status, tail, top, topics, up
from msight_bus.cli.exit_status import HELP

app = typer.Typer(
    name="msight-bus",
    no_args_is_help=True,
    rich_markup_mode="markdown" if sys.stdout.isatty() and sys.stderr.isatty() else None,  # else plain lines, no boxes
    pretty_exceptions_show_locals=False,  # local variables can contain secrets
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"msight-bus {__version__}")
        raise typer.Exit


class _Command(TyperCommand):
    """Refuses NaN and infinity: NaN is neither below the minimum nor above the maximum of an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for option in self.params:
            value = ctx.params.get(option.name or "")
            if isinstance(value, float) and not math.isfinite(value):
                raise typer.BadParameter(f"{value} is not a finite number.", ctx, option)
        return rest


@app.callback(epilog=HELP)
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Live sensor streams between async Python programs, over Redis, NATS or Kafka."""


for command, examples in (
    (up.up, up.EXAMPLES),
    (doctor.doctor, doctor.EXAMPLES),
    (status.status, status.EXAMPLES),
    (topics.topics, topics.EXAMPLES),
    (tail.tail, tail.EXAMPLES),
    (rates.hz, rates.HZ_EXAMPLES),
    (rates.bw, rates.BW_EXAMPLES),
    (ping.ping, ping.EXAMPLES),
    (pub.pub, pub.EXAMPLES),
    (top.top, top.EXAMPLES),
    (settings.settings, settings.EXAMPLES),
    (bench.bench, bench.EXAMPLES),
):
    app.command(cls=_Command, epilog=examples + HELP)(command)
