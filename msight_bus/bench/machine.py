"""Describe the machine and the installed versions of the measured packages."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "msight-bus", "redis", "hiredis", "nats-py", "aiokafka", "confluent-kafka", "faststream", "uvloop", "msight-core",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Return processor, memory, system and load of this machine, as far as known."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cpus": os.cpu_count(),
        "cpu": platform.processor() or platform.machine(),
    }
    with suppress(OSError, AttributeError):
        found["load"] = [round(value, 2) for value in os.getloadavg()]
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                found["cpu"] = line.partition(":")[2].strip()
                break
    with suppress(OSError, ValueError):
        first = Path("/proc/meminfo").read_text().split("\n", 1)[0]
        found["memory_gib"] = round(int(first.split()[1]) / 2**20, 1)
    return found


def versions() -> dict[str, str]:
    """Return the installed versions of the measured packages."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def in_words(machine: dict[str, Any]) -> str:
    """Return the description of a machine as one line."""
    memory = f", {machine['memory_gib']} GiB" if "memory_gib" in machine else ""
    load = f", load {machine['load'][0]}" if "load" in machine else ""
    return f"{machine['cpu']}, {machine['cpus']} CPUs{memory}, {machine['system']}, {machine['python']}{load}"
