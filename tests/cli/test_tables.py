"""Tables fit the terminal: columns are left out, then text is folded, numbers stay whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from msight_bus.cli.tables import Column, fit, print_table

COLUMNS = (Column("name", folds_at=6, left=True), Column("rate"), Column("bytes", 1), Column("age\nin s", 2))
ROWS = (("intersection.cam", "1,234,567", "12", "3"), ("b", "1", "98,765", "10"))


def _printed(width, **options):
    out = io.StringIO()
    print_table(COLUMNS, ROWS, Console(file=out, width=width, **options))
    return out.getvalue().splitlines()


def _terminal(width):
    return _printed(width, force_terminal=True, color_system=None)


def test_without_a_terminal_nothing_is_left_out_and_nothing_is_decorated():
    assert _printed(10) == [
        "                                      age",
        "name                   rate   bytes  in s",
        "intersection.cam  1,234,567      12     3",
        "b                         1  98,765    10",
    ]


def test_a_column_goes_before_text_is_folded():
    assert _terminal(35)[:3] == [
        "name                   rate   bytes",
        "intersection.cam  1,234,567      12",
        "b                         1  98,765",
    ]


def test_text_is_folded_when_no_other_column_can_go():
    assert _terminal(18)[:4] == [
        "name          rate",
        "intersec 1,234,567",
        "tion.cam",
        "b                1",
    ]


def test_the_column_with_the_highest_rank_goes_first_and_is_named():
    lines = _terminal(36)
    assert lines[0].split() == ["name", "rate", "bytes"]
    assert lines[-1] == "Not shown on 36 columns: age in s."


@pytest.mark.parametrize("width", range(1, 60))
def test_no_number_is_cut_at_any_width(width):
    lines = _terminal(width)
    assert any("1,234,567" in line for line in lines)
    assert all(len(line) <= max(width, 16) for line in lines if not line.startswith("Not shown"))


def test_a_wide_character_takes_two_places():
    layout = fit((Column("a", left=True), Column("b")), [("漢字", "1"), ("x", "2")], None)
    assert layout.row(("漢字", "1")) == ["漢字  1"]
    assert layout.row(("x", "2")) == ["x     2"]
