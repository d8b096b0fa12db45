"""``python -m benchmarks``: compare the bus with raw protocols and other libraries."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from benchmarks import against, camera, nodes
from benchmarks.catalog import BACKENDS
from benchmarks.core import PRESENT
from benchmarks.measuring import measure, save
from benchmarks.readme import put, section
from benchmarks.report import show
from benchmarks.scale import FULL, QUICK, Scale
from msight_bus.brokers import KindName

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

Backends = Annotated[
    list[str] | None, typer.Option("--backend", help="redis, nats or kafka; repeatable; default: all.")
]
JsonPath = Annotated[Path | None, typer.Option("--json", help="File for the result with all runs.")]


def _measure(backends: list[str] | None, scale: Scale) -> dict[str, Any]:
    for backend in backends or ():
        if backend not in BACKENDS:
            raise typer.BadParameter(f"--backend must be one of {', '.join(BACKENDS)}, not {backend!r}.")
    begun = time.monotonic()
    console = Console(stderr=True, highlight=False)

    def say(line: str) -> None:
        console.print(f"{time.monotonic() - begun:6.1f} s  {line}", markup=False, soft_wrap=True)

    result = measure(cast(list[KindName], backends or list(BACKENDS)), scale, say)
    show(result, Console(highlight=False))
    return result


@app.command()
def quick(backend: Backends = None, json_path: JsonPath = None) -> None:
    """Measure latency and throughput in three minutes for three backends; the figures are rough."""
    result = _measure(backend, QUICK)
    if json_path is not None:
        typer.echo(f"written to {save(result, json_path)}")


@app.command()
def full(
    backend: Backends = None,
    json_path: JsonPath = None,
    minutes: Annotated[
        float, typer.Option(min=1, help="Minutes for all backends; fewer minutes mean fewer rounds.")
    ] = 23,
) -> None:
    """Measure everything in five rounds (latency in ten); write the result to benchmarks/results."""
    scale = replace(FULL, budget=minutes * 60 / len(backend or BACKENDS))
    typer.echo(f"written to {save(_measure(backend, scale), json_path)}")


app.command(name="nodes")(nodes.main)
app.command(name="camera")(camera.main)


@app.command()
def core(
    patterns: against.RowsOption = None,
    rounds: against.RoundsOption = 5,
    messages: against.MessagesOption = 60_000,
    path: against.JsonOption = None,
    tree: Annotated[Path, typer.Option(help="Checkout whose package is measured.")] = PRESENT,
) -> None:
    """Measure the core by topics, sizes, foreign payloads and on memory; write to --json or benchmarks/results."""
    result = against.measure({against.BASE: tree.resolve()}, against.chosen(patterns), rounds, messages, path)
    against.show(result)
    typer.echo(f"written to {save(result, path)}")


@app.command(name="show")
def show_(path: Path) -> None:
    """Print the tables of a result file."""
    show(json.loads(path.read_text()), Console(highlight=False))


@app.command()
def readme(
    path: Path,
    into: Annotated[
        Path | None, typer.Option(help="File in which to replace the section; unset: print the section.")
    ] = None,
) -> None:
    """Generate the README's performance section from a result file, as markdown between markers."""
    folder = (into or Path("README.md")).resolve().parent
    written = section(json.loads(path.read_text()), os.path.relpath(path.resolve(), folder))
    if into is None:
        typer.echo(written, nl=False)
        return
    try:
        into.write_text(put(into.read_text(), written))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@app.command()
def html(
    path: Path, to: Annotated[Path | None, typer.Argument(help="Page to write; unset: next to the result file.")] = None
) -> None:
    """Render a result file as a self-contained HTML page with charts."""
    from benchmarks.html import page  # noqa: PLC0415 - imports matplotlib

    to = to or path.with_suffix(".html")
    to.write_text(page(json.loads(path.read_text())), encoding="utf-8")
    typer.echo(f"written to {to}")


if __name__ == "__main__":
    app()
