"""``msight-bus settings``: every variable, what it means and what it is now."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from msight_bus.errors import ConfigError
from msight_bus.settings import BusSettings

EXAMPLES = """
Examples:

- `msight-bus settings`: every variable, and which of them are set here

- `msight-bus settings nats`: those whose name contains NATS

- `msight-bus settings --check`: only say whether the environment is right
"""


def settings(
    containing: Annotated[str, typer.Argument(help="Show only variables whose name contains this.")] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Only check the environment; exit status 1 if it is wrong.")
    ] = False,
) -> None:
    """List every MSIGHT_ variable with its type, default and meaning, and check the environment."""
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    if not check:
        table = Table(Column("variable", overflow="fold"), "takes", "unset", "meaning")
        for variable in BusSettings.variables():
            if containing.upper() in variable.name:
                name = f"[bold]{variable.name}[/bold] (set)" if variable.name in os.environ else variable.name
                meaning = variable.meaning + (
                    f" Or {variable.name}_FILE names a file with it." if variable.secret else ""
                )
                table.add_row(name, variable.type, variable.default or "", meaning)
        out.print(table)
    try:
        chosen = BusSettings()
    except ConfigError as error:
        err.print("[red]The environment is wrong:[/red]")
        for problem in error.problems:
            err.print(f"- {problem}", markup=False)
        raise typer.Exit(1) from None
    out.print(f"The environment is right; it chooses the backend {chosen.backend}.")
