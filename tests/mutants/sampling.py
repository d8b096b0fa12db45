"""A sample of the mutations of the package, and the tests that should notice each."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.mutants.mutations import Mutation, mutations

PROJECT = Path(__file__).parents[2]
KAFKA = "msight_bus/backends/kafka/"
_OF_KAFKA = 0.3
"""The least part of a sample that is of the Kafka backend, most of which is the project's own code."""

_FIRST = [KAFKA, "msight_bus/nodes/"]

_BROKERS = ["tests/security", "tests/contract", "tests/clusters", "-k"]
_CLIENTS = ["tests/backends/pubsub", *_BROKERS]
BESIDE = {
    KAFKA: [*_BROKERS, "kafka"],
    "msight_bus/backends/redis/": [*_CLIENTS, "redis"],
    "msight_bus/backends/nats/": [*_CLIENTS, "nats"],
    "msight_bus/backends/pubsub/": ["tests/contract", "-k", "redis"],
    "msight_bus/backends/memory.py": ["tests/contract", "-k", "memory or simulation"],
    "msight_bus/backends/": ["tests/backends/pubsub"],
    "msight_bus/subscription/": ["tests/contract", "-k", "memory"],
    "msight_bus/testing/": ["tests/contract", "-k", "simulation"],
}
"""The tests that cover a path beside its folder. A module beside the packages has the contract of the memory backend."""

_ANNOUNCED = ["test_registry.py", "test_program_announcer.py", "nodes/test_heartbeat.py"]
ELSEWHERE = {
    "announcements": _ANNOUNCED,
    "bus": ["test_core.py", "nodes/test_many_topics.py"],
    "known_programs": _ANNOUNCED,
    "draining": ["nodes/test_shutdown.py"],
    "heartbeat_sender": ["nodes/test_heartbeat.py", "test_registry.py"],
    "loop_share": ["nodes/test_bad_input.py", "nodes/test_handling.py"],
    "executors": ["nodes/test_off_loop.py", "nodes/test_ending.py"],
    "pacing": ["nodes/test_source.py"],
    "runtime": ["nodes/test_signals.py", "nodes/test_running.py"],
    "signals": ["nodes/test_signals.py"],
    "tally": ["nodes/test_log_lines.py"],
}
"""The tests of a module beside the packages that has none of its own name."""


@dataclass(frozen=True)
class Mutant:
    """A mutation of a file.

    Attributes:
        path: the file, from the project's folder on.
        identity: the same as long as neither the line nor its neighbours of the same text change.
    """

    path: str
    mutation: Mutation
    identity: str

    def __str__(self) -> str:
        return f"{self.path}:{self.mutation.line}: {self.mutation.what}"


@cache
def mutants_of(path: str) -> list[Mutant]:
    """Return all mutants of a file."""
    source = (PROJECT / path).read_text()
    lines = source.splitlines()
    same: Counter[str] = Counter()
    found = []
    for mutation in mutations(source):
        place = f"{path} {lines[mutation.line - 1].strip()} {mutation.what}"
        same[place] += 1
        identity = hashlib.sha256(f"{place} {same[place]}".encode()).hexdigest()[:16]
        found.append(Mutant(path, mutation, identity))
    return found


def sample(seed: int, count: int, only: str = "msight_bus/") -> list[Mutant]:
    """Return ``count`` mutants of the files whose path begins with ``only``, those of Kafka and of nodes first.

    The sample does not change with the lines around a mutant, nor with other files, apart from its last ones.
    """
    paths = sorted(str(path.relative_to(PROJECT)) for path in (PROJECT / "msight_bus").rglob("*.py"))
    every = [mutant for path in paths if path.startswith(only) for mutant in mutants_of(path)]
    every.sort(key=lambda each: hashlib.sha256(f"{seed} {each.identity}".encode()).digest())
    kafka = [each for each in every if each.path.startswith(KAFKA)][: round(count * _OF_KAFKA)]
    chosen = set(kafka)
    others = [each for each in every if each not in chosen][: count - len(kafka)]
    return sorted(kafka + others, key=lambda each: (_rank(each.path), each.path, each.mutation.start))


def _rank(path: str) -> int:
    return next((number for number, start in enumerate(_FIRST) if path.startswith(start)), len(_FIRST))


def suites_of(path: str) -> list[list[str]]:
    """Return the arguments of pytest for each run that should notice a mutant of this file, the closest tests first."""
    inside = Path(path).relative_to("msight_bus")
    beside = next((tests for start, tests in BESIDE.items() if path.startswith(start)), None)
    if inside.parent == Path():
        test = PROJECT / "tests" / f"test_{inside.stem}.py"
        names = ELSEWHERE.get(inside.stem) or ([test.name] if test.exists() else [])
        return [[f"tests/{name}" for name in names]] * bool(names) + [["tests/contract", "-k", "memory"]]
    folder = PROJECT / "tests" / inside.parent
    while not folder.is_dir():
        folder = folder.parent
    files = sorted(folder.glob("test_*.py"), key=lambda file: (file.stem != f"test_{inside.stem}", file.name))
    own = [str(file.relative_to(PROJECT)) for file in files]
    return [own, beside] if beside else [own]
