"""Invented results of benchmarks."""

from __future__ import annotations

from typing import Any

from benchmarks.interleaving import summary


def make_row(what: str, size: int, candidate: str, run: dict[str, float]) -> dict[str, Any]:
    found = {"what": what, "size": size, "candidate": candidate, "voids": [], "disturbed": []}
    return {**found, "runs": [run], "summary": summary([run])}


def make_result() -> dict[str, Any]:
    late = {"p50": 200.0, "p90": 300.0, "p99": 400.0, "p99.9": 500.0, "max": 600.0, "samples": 1000.0}
    rows = [
        make_row("latency", 1024, "ceiling", late),
        make_row("latency", 1024, "bus", {**late, "p50": 210.0}),
        make_row("subscribe", 128, "ceiling", {"rate": 1000.0, "cpu_us": 1.0}),
        make_row("subscribe", 128, "bus", {"rate": 800.0, "cpu_us": 1.25}),
    ]
    measured = {"broker": "Valkey", "version": "9.1.2", "is_stand_in": False, "measurements": rows}
    machine = {"cpu": "a processor", "cpus": 2, "system": "Linux", "python": "CPython 3.11.7"}
    return {
        "scale": "full",
        "command": "python -m benchmarks full --minutes 5",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 600.0,
        "machine": machine,
        "versions": {"msight-bus": "0.2.0"},
        "backends": {"redis": measured},
    }


def page(result: dict[str, Any]) -> str:
    """Return the page of a result; matplotlib is imported here, not in each process that collects tests."""
    from benchmarks.html import page

    return page(result)
