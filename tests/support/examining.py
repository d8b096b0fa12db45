"""Run ``msight-bus doctor``."""

from __future__ import annotations

import json
from typing import Any

from tests.support.brokers import Backend
from tests.support.commands import command

Findings = dict[str, dict[str, Any]]


def examine(backend: Backend, *arguments: str, seconds: float = 0.1, **variables: str) -> tuple[int, Findings]:
    """Run the checks on a broker; return the exit status and the findings, by check."""
    result = command(backend, "doctor", "--observe", str(seconds), "--json", *arguments, **variables)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return result.exit_code, {one["check"]: one for one in found if "check" in one}


def examine_variables(kind: str, *arguments: str, **variables: str) -> tuple[int, Findings]:
    """Examine with no other variables than these."""
    return examine(Backend(kind, {}), *arguments, **variables)
