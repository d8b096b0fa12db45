"""The command line: ``msight-bus``."""

from __future__ import annotations

import typer

from msight_bus.cli import bench, settings, top, up

app = typer.Typer(
    name="msight-bus",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,  # they could show a secret
)


@app.callback()
def main() -> None:
    """Live sensor streams between async Python programs, over Redis, NATS or Kafka."""


app.command("up", epilog=up.EXAMPLES)(up.up)
app.command("top", epilog=top.EXAMPLES)(top.top)
app.command("settings", epilog=settings.EXAMPLES)(settings.settings)
app.add_typer(bench.app, name="bench")
