"""``msight-bus settings``: list the variables and check the environment."""

from __future__ import annotations

import os
import shlex
import warnings
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from msight_bus.cli.exit_status import USAGE
from msight_bus.errors import ConfigError
from msight_bus.settings import BusSettings, Variable

EXAMPLES = """
Examples:

- `msight-bus settings`: all variables, and which of them are set

- `msight-bus settings nats`: variables with NATS in their name

- `msight-bus settings > settings.env`: a line `NAME=default` for each variable; `set -a; . ./settings.env` reads them

- `msight-bus settings --check`: only check the environment
"""


def settings(
    containing: Annotated[str, typer.Argument(help="Show only variables whose name contains this.")] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Only check the environment; the exit status is 2 if it has errors.")
    ] = False,
) -> None:
    """List the MSIGHT_ variables, and check the environment.

    Output to a file or pipe has one line `NAME=default` for each variable, quoted for a shell.
    """
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    if not check:
        found = [variable for variable in BusSettings.variables() if containing.upper() in variable.name]
        if not found:
            raise typer.BadParameter(
                f"no variable has a name that contains {containing!r}; `msight-bus settings` lists all variables.",
                param_hint="containing",
            )
        for variable in found:
            if out.is_terminal:
                _show(variable, out)
            else:
                print(f"{variable.name}={shlex.quote(variable.default) if variable.default else ''}")  # noqa: T201
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            chosen = BusSettings()
        except ConfigError as error:
            err.print("[red]Environment has errors:[/red]")
            for problem in error.problems:
                err.print(f"- {problem}", markup=False, soft_wrap=True)
            raise typer.Exit(USAGE) from None
        finally:
            for warning in caught:
                err.print(f"Warning: {warning.message}", markup=False, style="yellow", soft_wrap=True)
    verdict = f"Environment OK{', with warnings' if caught else ''}; backend: {chosen.backend}."
    (out if check or out.is_terminal else err).print(verdict, markup=False, soft_wrap=True)


def _show(variable: Variable, out: Console) -> None:
    """Print two paragraphs, because a table would break the names on 80 columns."""
    present = {name: os.environ[name] for name in variable.names if name in os.environ}
    states = [f"{name} is {'set' if value else 'empty, and so unset'}" for name, value in present.items()]
    states = [state.removeprefix(f"{variable.name} is ") for state in states]
    default = f"default: {variable.default}" if variable.default else "unset by default"
    out.print(Text.assemble((variable.name, "bold"), f" ({'; '.join([*states, default])})"))
    meaning = f"{variable.meaning} Accepts {variable.value_type.accepts}."
    for name in variable.names[1:]:
        meaning += f" {name} can name a file with the value instead."
    out.print(Padding(Text(meaning, overflow="fold"), (0, 0, 0, 4), expand=False))
