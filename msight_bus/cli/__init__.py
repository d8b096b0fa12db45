"""The commands of ``msight-bus``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from msight_bus import __version__
from msight_bus.cli import bench, settings, top, up
from msight_bus.cli.exit_status import HELP

app = typer.Typer(
    name="msight-bus",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown" if sys.stdout.isatty() and sys.stderr.isatty() else None,  # else plain lines, no boxes
    pretty_exceptions_show_locals=False,  # local variables can contain secrets
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"msight-bus {__version__}")
        raise typer.Exit


@app.callback(epilog=HELP)
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Live sensor streams between async Python programs, over Redis, NATS or Kafka."""


for module, command in ((up, up.up), (top, top.top), (settings, settings.settings), (bench, bench.bench)):
    app.command(epilog=module.EXAMPLES + HELP)(command)
