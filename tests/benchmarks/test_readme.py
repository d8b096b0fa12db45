"""The README's performance section comes from a result file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.readme import BEGIN, END, put, section
from tests.support.results import make_result, make_row, page

ROOT = Path(__file__).parents[2]


def test_it_has_the_figures_the_machine_and_the_command():
    result = make_result()
    result["backends"]["redis"]["measurements"].append(
        make_row("subscribe", 128, "client", {"rate": 500.0, "cpu_us": 2.0})
    )
    written = section(result, "results/it.json")
    assert "| latency of 1 KiB, p50, µs | 210 |" in written
    assert "| subscribe 128 B, messages a second | 800 |" in written
    assert "| subscribe 128 B / client | 1.60 |" in written
    assert "\npython -m benchmarks full --minutes 5\n" in written
    assert "2026-01-02" in written
    assert "a processor, 2 CPUs" in written
    assert "Valkey 9.1.2" in written
    assert "(results/it.json)" in written


def test_a_target_that_is_missed_is_plain_to_see():
    result = make_result()
    result["backends"]["redis"]["measurements"][3] = make_row("subscribe", 128, "bus", {"rate": 300.0, "cpu_us": 1.0})
    written = section(result, "it.json")
    assert "are **not reached**" in written
    assert "- Not reached: subscribe 128 B / ceiling: redis 0.30 (target ≥ 0.70)" in written
    assert "FAIL" in page(result)


def test_a_stand_in_is_called_one():
    result = make_result()
    result["backends"]["redis"]["is_stand_in"] = True
    assert "stand-in" in section(result, "it.json")
    assert "stand-in" in page(result)


def test_the_readme_is_what_its_result_file_generates():
    readme = (ROOT / "README.md").read_text()
    written = readme[readme.index(BEGIN) :]
    (link,) = re.findall(r"\]\((benchmarks/results/[^)]+\.json)\)", written)
    assert put(readme, section(json.loads((ROOT / link).read_text()), link)) == readme


def test_it_replaces_the_section_between_the_markers():
    readme = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = put(readme, section(make_result(), "it.json"))
    assert once.startswith("before\n")
    assert once.endswith(f"{END}\nafter\n")
    assert "old" not in once
    assert put(once, section(make_result(), "it.json")) == once


def test_a_file_without_markers_is_left_alone():
    with pytest.raises(ValueError, match="no markers"):
        put("nothing here", "section")


def test_the_command_writes_into_a_file(tmp_path, monkeypatch):
    result, readme = tmp_path / "result.json", tmp_path / "README.md"
    result.write_text(json.dumps(make_result()))
    readme.write_text(f"{BEGIN}\n{END}\n")
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["readme", str(result), "--into", str(readme)]).exit_code == 0
    assert "(result.json)" in readme.read_text()  # as seen from there
    printed = CliRunner().invoke(app, ["readme", str(result)])
    assert printed.output == readme.read_text()
