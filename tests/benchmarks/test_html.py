"""The page of a result file is whole in itself and hides nothing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from tests.support.results import make_result, make_row, page

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def _curve(what: str, *points: dict) -> dict:
    return {"points": list(points), "saturated": what == "rate", "end": "2,000/s was not held, 1,500/s came"}


def _with_curves() -> dict:
    result = make_result()
    point = {"rate": 1000.0, "held": 1000.0, "p50": 100.0, "p99": 900.0}
    rate = {"bus": _curve("rate", point, {**point, "rate": 2000.0, "p50": 90_000.0, "p99": 200_000.0})}
    size = {"bus": _curve("size", {"size": 64.0, "rate": 5000.0, "bytes_rate": 320_000.0})}
    result["backends"]["redis"]["curves"] = {"rate": rate, "size": size}
    return result


def _charts(whole: str) -> int:
    return whole.count('src="data:image/svg+xml;base64,')


def test_it_is_well_formed_and_fetches_nothing():
    result = _with_curves()
    result["command"] = "<script>"
    whole = page(result)
    assert "<script" not in whole
    assert not re.search(r"https?:|@import|url\(", whole)
    assert _charts(whole) == 1 + 1 + 1 + 1  # latency, two curves, the rates of one size


def test_why_a_curve_ends_is_said():
    assert "1,500/s came" in page(_with_curves())


def test_a_rate_that_was_not_held_is_hollow():
    from benchmarks.charts import by_rate

    curves = _with_curves()["backends"]["redis"]["curves"]["rate"]

    def hollow():
        lines = [line for axes in by_rate(curves).axes for line in axes.get_lines()]
        return [line.get_xydata()[-1][0] for line in lines if line.get_markerfacecolor() == "white"]

    assert hollow() == [2000.0, 2000.0]
    curves["bus"]["saturated"] = False
    assert hollow() == []


def test_what_disturbed_and_what_was_void_is_said():
    result = make_result()
    row = result["backends"]["redis"]["measurements"][1]
    row["disturbed"], row["voids"] = [0], ["3 messages were sent and 2 came."]
    whole = page(result)
    assert "bus *" in whole
    assert "3 messages were sent and 2 came." in whole


def test_a_candidate_without_a_figure_has_its_row():
    result = make_result()
    row = make_row("latency", 1024, "client", {"p50": 1.0, "samples": 1.0})
    result["backends"]["redis"]["measurements"].append({**row, "runs": [None], "summary": None})
    assert re.search(r"client +- .*void", page(result))


def test_a_broker_that_could_not_be_started_is_said():
    result = make_result()
    missing = {"broker": "none", "version": "", "is_stand_in": False, "problem": "no Java", "measurements": []}
    result["backends"]["kafka"] = missing
    assert "kafka: no Java" in page(result)


RECORDED = sorted(RESULTS.glob("*T*Z-full.json"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_every_recorded_result_has_a_page(path, tmp_path):
    """The backends of a result have the same form: one is drawn."""
    result = json.loads(path.read_text())
    result["backends"] = dict([result["backends"].popitem()])
    recorded, to = tmp_path / "result.json", tmp_path / "page.html"
    recorded.write_text(json.dumps(result))
    assert CliRunner().invoke(app, ["html", str(recorded), str(to)]).exit_code == 0
    whole = to.read_text()
    HTMLParser().feed(whole)
    assert result["machine"]["cpu"].split("@")[0].strip() in whole
    assert _charts(whole) > 6 * len(result["backends"])
