"""The core's rows run with any checkout, and a comparison says what is noise."""

from __future__ import annotations

import json
import shutil

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.against import AGAIN, BASE, NOW, table
from benchmarks.core import MANY, PRESENT, Core, FailedRunError, rows
from benchmarks.instructions import main

MESSAGES = 2000

instructions_app = typer.Typer()
instructions_app.command()(main)


@pytest.mark.parametrize(
    "name",
    [
        "redis receive 1 x 80-900 B",
        "redis foreign 1 x 128 B",
        "redis publisher 1000 x 128 B",
        "nats receive 1 x 128 B",
        "nats foreign 1 x 80-900 B",
        "memory publish 1000 x 128 B",
        "memory publisher 1 x 80-900 B",
        "memory list 1000 x 80-900 B",
        "redis pattern 1000 x 128 B",
        "nats list 1000 x 128 B in runs of 64",
    ],
)
def test_a_row_has_its_figures(name):
    (row,) = rows([name])
    with Core(PRESENT, MESSAGES) as core:
        figures = core.run(row, PRESENT)
    assert set(figures) == {"rate", "cpu_us", "peak_mib"}
    assert all(value > 0 for value in figures.values())


def test_the_package_of_another_checkout_is_no_figure_of_the_present_one(tmp_path):
    (row,) = rows(["memory publish 1 x 128 B"])
    (tmp_path / "msight_bus").symlink_to(PRESENT / "msight_bus")
    with Core(PRESENT, MESSAGES) as core:
        assert core.run(row, tmp_path)
        with pytest.raises(FailedRunError, match="which is not in"):
            core.run(row, tmp_path / "nothing")


def test_rows_have_all_shapes_and_are_chosen_by_their_names():
    assert {row.topics for row in rows()} == {1, MANY}
    assert {row.backend for row in rows(["* foreign *"])} == {"redis", "nats"}
    assert len(rows(["redis publish *"])) == 4
    with pytest.raises(ValueError, match="memory publisher 1 x 128 B"):
        rows(["no such row"])


def test_a_table_has_medians_the_ratio_of_each_round_and_the_bases_to_itself():
    def runs(*rates):
        return [rate and {"rate": float(rate), "cpu_us": 1.0, "peak_mib": 50.0} for rate in rates]

    measured = {"redis receive": {BASE: runs(100, 200, 300), NOW: runs(220, 330, None), AGAIN: runs(100, 240, 360)}}
    line = next(line for line in table(measured) if "messages/s" in line)
    assert line.split() == [
        "redis",
        "receive",
        "messages/s",
        "220",
        "275",
        "1.85",
        "1.50",
        "-",
        "2.20",
        "1.00",
        "-",
        "1.20",
    ]


def test_one_run_is_recorded_with_its_machine_and_versions(tmp_path):
    to = tmp_path / "core.json"
    wanted = ["--rows", "memory publish 1 x 128 B", "--rounds", "1", "--messages", "1000", "--json", str(to)]
    done = CliRunner().invoke(app, ["core", *wanted])
    assert done.exit_code == 0, done.output
    result = json.loads(to.read_text())
    assert result["machine"]["cpus"]
    assert result["versions"]["uvloop"]
    assert [set(run) for run in result["rows"]["memory publish 1 x 128 B"][BASE]] == [{"rate", "cpu_us", "peak_mib"}]


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_instructions_are_counted_for_each_checkout(tmp_path):
    to = tmp_path / "instructions.json"
    wanted = ["--base", str(PRESENT), "--rows", "memory publish 1 x 128 B", "--messages", "2000", "--json", str(to)]
    done = CliRunner().invoke(instructions_app, wanted)
    assert done.exit_code == 0, done.output
    counts = json.loads(to.read_text())["rows"]["memory publish 1 x 128 B"]
    assert set(counts) == {BASE, NOW}
    assert all(count > 1000 for count in counts.values())


def test_a_base_that_is_no_checkout_is_refused_before_anything_runs(tmp_path):
    done = CliRunner().invoke(instructions_app, ["--base", str(tmp_path)])
    assert done.exit_code == 2
    assert "There is no package msight_bus in" in " ".join(done.output.split())
