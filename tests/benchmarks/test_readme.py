"""The README's performance section comes from a result file."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.html import page
from benchmarks.readme import BEGIN, END, put, section
from msight_bus.bench.figures import summary


def _row(what: str, size: int, candidate: str, run: dict[str, float]) -> dict[str, Any]:
    found = {"what": what, "size": size, "candidate": candidate, "voids": [], "disturbed": []}
    return {**found, "runs": [run], "summary": summary([run])}


def _result() -> dict[str, Any]:
    late = {"p50": 200.0, "p90": 300.0, "p99": 400.0, "p99.9": 500.0, "max": 600.0}
    rows = [
        _row("latency", 1024, "ceiling", late),
        _row("latency", 1024, "bus", {**late, "p50": 210.0}),
        _row("subscribe", 128, "ceiling", {"rate": 1000.0, "cpu_us": 1.0}),
        _row("subscribe", 128, "bus", {"rate": 800.0, "cpu_us": 1.25}),
    ]
    measured = {"broker": "Valkey", "version": "9.1.2", "is_stand_in": False, "measurements": rows}
    machine = {"cpu": "a processor", "cpus": 2, "system": "Linux", "python": "CPython 3.11.7"}
    return {
        "scale": "full",
        "command": "python -m benchmarks full --minutes 5",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 600.0,
        "machine": machine,
        "versions": {"msight-bus": "0.1.0"},
        "backends": {"redis": measured},
    }


def test_it_has_the_figures_the_machine_and_the_command():
    written = section(_result())
    assert "| redis, bus | 210 | 300 | 400 | 500 | 600 |" in written
    assert "| redis (Valkey 9.1.2), subscribe, bus | 800 |  |  | 1.25 |" in written
    assert "| redis subscribe 128 B / ceiling | 0.80 | 0.80–0.80 | ≥ 0.70 | pass |" in written
    assert "python -m benchmarks full --minutes 5" in written
    assert "2026-01-02" in written
    assert "a processor, 2 CPUs" in written


def test_it_replaces_the_section_between_the_markers():
    readme = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = put(readme, section(_result()))
    assert once.startswith("before\n")
    assert once.endswith(f"{END}\nafter\n")
    assert "old" not in once
    assert put(once, section(_result())) == once


def test_a_file_without_markers_is_left_alone():
    with pytest.raises(ValueError, match="no place"):
        put("nothing here", "section")


def test_the_command_writes_into_a_file(tmp_path):
    result, readme = tmp_path / "result.json", tmp_path / "README.md"
    result.write_text(json.dumps(_result()))
    readme.write_text(f"{BEGIN}\n{END}\n")
    assert CliRunner().invoke(app, ["readme", str(result), "--into", str(readme)]).exit_code == 0
    assert "Valkey 9.1.2" in readme.read_text()
    printed = CliRunner().invoke(app, ["readme", str(result)])
    assert printed.output == readme.read_text()


def test_the_html_page_is_well_formed_and_fetches_nothing():
    result = _result()
    result["command"] = "<script>"
    whole = page(result)
    assert "<script" not in whole
    assert "http" not in whole
    for svg in re.findall(r"<svg.*?</svg>", whole, re.DOTALL):
        ElementTree.fromstring(svg)
    assert whole.count("<svg") == 2
