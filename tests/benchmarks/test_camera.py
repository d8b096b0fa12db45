"""The table of the benchmark at the rate of cameras."""

from __future__ import annotations

from benchmarks.camera import NAMES, lines
from benchmarks.catalog import BUS, CEILING, CONFLUENT


def test_each_ratio_is_of_one_round():
    spent = {CEILING: (300.0, 600.0, 600.0), CONFLUENT: (100.0, 200.0, 300.0), BUS: (150.0, 220.0, 600.0)}
    table = lines({name: [{"cpu_us": cpu, "p50": 900.0} for cpu in spent[name]] for name in NAMES})
    assert [line.split(" x ")[1] for line in table] == [
        "3.00 (2.00 - 3.00)",
        "1.00 (1.00 - 1.00)",
        "1.50 (1.10 - 2.00)",
    ]
    assert "220 us CPU" in table[NAMES.index(BUS)]
