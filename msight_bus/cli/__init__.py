"""The commands of ``msight-bus``; the module of a command is imported when the command is used."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from msight_bus import __version__, _ctrl_c
from msight_bus.cli.exit_status import HELP

# Plain lines, not boxes, in a pipe or a file.
_MARKUP: Literal["markdown"] | None = "markdown" if sys.stdout.isatty() and sys.stderr.isatty() else None

_COMMANDS = {  # module and name of the examples
    "up": ("up", "EXAMPLES"),
    "doctor": ("doctor", "EXAMPLES"),
    "status": ("status", "EXAMPLES"),
    "topics": ("topics", "EXAMPLES"),
    "tail": ("tail", "EXAMPLES"),
    "hz": ("rates", "HZ_EXAMPLES"),
    "bw": ("rates", "BW_EXAMPLES"),
    "ping": ("ping", "EXAMPLES"),
    "pub": ("pub", "EXAMPLES"),
    "top": ("top", "EXAMPLES"),
    "settings": ("settings", "EXAMPLES"),
    "bench": ("bench", "EXAMPLES"),
}


class _Command(TyperCommand):
    """Refuses NaN and infinity: NaN is neither below the minimum nor above the maximum of an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for option in self.params:
            value = ctx.params.get(option.name or "")
            if isinstance(value, float) and not math.isfinite(value):
                raise typer.BadParameter(f"{value} is not a finite number.", ctx, option)
        return rest


class _Commands(TyperGroup):
    """Imports the module of a command when the command is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands and cmd_name in _COMMANDS:
            name, examples = _COMMANDS[cmd_name]
            module = import_module(f"msight_bus.cli.{name}")
            alone = typer.Typer(add_completion=False, rich_markup_mode=_MARKUP)
            alone.command(cmd_name, cls=_Command, epilog=getattr(module, examples) + HELP)(getattr(module, cmd_name))
            self.commands[cmd_name] = typer.main.get_command(alone)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in _COMMANDS:  # the error suggests the commands that are alike
            for name in _COMMANDS:
                self.get_command(ctx, name)
        resolved = super().resolve_command(ctx, args)
        _ctrl_c.end_of_imports()
        return resolved


app = typer.Typer(
    name="msight-bus",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=_MARKUP,
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
