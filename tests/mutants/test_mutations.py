"""What is mutated, how, and what is left alone; which mutants are chosen, and by which tests they are tried."""

from __future__ import annotations

import shutil
from itertools import pairwise
from textwrap import dedent

import pytest

from tests.mutants.__main__ import Recordings, Trial, chosen_tests
from tests.mutants.marking import marked
from tests.mutants.mutations import mutations
from tests.mutants.running import Copy, Outcome, Recording
from tests.mutants.sampling import BESIDE, ELSEWHERE, KAFKA, PROJECT, Mutant, mutants_of, sample, suites_of

PATHS = sorted(str(path.relative_to(PROJECT)) for path in (PROJECT / "msight_bus").rglob("*.py"))


def mutated(source):
    return [mutation.apply(source) for mutation in mutations(source)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", ["a <= b"]),
        ("a >= b", ["a > b"]),
        ("a == b != c", ["a != b != c", "a == b == c"]),
        ("(a) is not (b)", ["(a) is (b)"]),
        ("a  not in b", ["a  in b"]),
        ("a and b and c", ["a or b and c", "a and b or c"]),
        ("x = a + b", ["x = a - b"]),
        ("x = 'é' * a + b", ["x = 'é' * a - b"]),
        ("a -= b", ["pass", "a += b"]),
        ("x = not a", ["x = a"]),
        ("if a: b", ["if (not (a)): b"]),
        ("while f(a): b", ["while (not (f(a))): b"]),
        ("x = True", ["x = False"]),
        ("x = 41", ["x = 42"]),
        ("x = min(a, b)", ["x = max(a, b)"]),
        ("f()", ["pass"]),
        ("async def g(): await f(); return a", ["async def g(): pass; return a"]),
        ("a.b = c", ["pass"]),
        ("del a[b]", ["pass"]),
        ("raise A(1 + 1)", ["pass"]),
        ("while a < b: break", ["while a <= b: break", "while a < b: pass"]),
        ("def f(a=1): return a", ["def f(a=2): return a"]),
        ("if (\n    a\n    and b\n): c", ["if (\n    a\n    or b\n): c"]),
    ],
)
def test_each_mutation_changes_one_place(source, expected):
    assert mutated(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "def f(a: int | None = None) -> dict[str, int | None]: ...",
        "x: int | None",
        "@f(1)\ndef g(): ...",
        "'a text'",
        "def f():\n    'a docstring'",
        "x = 'a' + b",
        "x = a | b",
        "_log.warning('%d', 1 + 1)",
        "self._log.info(a)",
        "self._node_run.log.error(a)",
        "def __repr__(self): return 1 + 1",
        "__all__ = [1]",
        "if TYPE_CHECKING: f()",
        "x = f'{a:>10}'",
    ],
)
def test_what_is_no_behaviour_is_left_alone(source):
    assert mutated(source) == []


def test_the_mutants_of_a_file_differ_and_compile():
    for path in PATHS:
        source = (PROJECT / path).read_text()
        mutants = mutants_of(path)
        assert len({mutant.identity for mutant in mutants}) == len(mutants), path
        for mutant in mutants[:: max(1, len(mutants) // 3)]:
            changed = mutant.mutation.apply(source)
            assert changed != source, path
            compile(changed, path, "exec")


def test_each_file_has_tests_that_exist():
    for path in PATHS:
        files = [name for suite in suites_of(path) for name in suite if name.startswith("tests/")]
        assert files, path
        assert [name for name in files if not (PROJECT / name).exists()] == [], path


def test_the_closest_tests_come_first():
    kafka, others = suites_of("msight_bus/backends/kafka/producer.py")
    assert kafka[0] == "tests/backends/kafka/test_producer.py"
    assert "tests/backends/kafka/test_group.py" in kafka
    assert others == ["tests/security", "tests/contract", "tests/clusters", "-k", "kafka"]
    assert suites_of("msight_bus/backends/kafka/aiokafka_compat/client.py")[0] == sorted(kafka)
    assert suites_of("msight_bus/signals.py")[0] == ["tests/nodes/test_signals.py"]


def test_the_tables_name_what_there_is():
    assert [start for start in BESIDE if not any(path.startswith(start) for path in PATHS)] == []
    assert [name for name in ELSEWHERE if f"msight_bus/{name}.py" not in PATHS] == []


def test_a_seed_chooses_the_same_mutants_again_and_another_seed_others():
    chosen = sample(1, 100)
    assert len(set(chosen)) == 100
    assert sum(mutant.path.startswith(KAFKA) for mutant in chosen) >= 30
    assert sample(1, 100) == chosen
    assert len(set(sample(2, 100)) & set(chosen)) < 50
    assert set(sample(1, 50)) < set(chosen)
    assert {mutant.path.split("/")[1] for mutant in sample(1, 10, "msight_bus/data/")} == {"data"}


@pytest.mark.parametrize(
    ("line", "before"),
    [
        ("A = 1", ["if A:", "return A"]),
        ("low = 2", ["if self.low < d:"]),
        ("def c(self, d=3):", ["if self.low < d:"]),
        ("return 4", ["return 4"]),
        ("if A:", ["if A:"]),
        ("call(5)", ["if self.low < d:", "return 4", "if A:", "return A"]),
    ],
)
def test_a_mark_is_before_the_statements_that_show_a_mutant(line, before):
    source = """
        A = 1
        class B:
            low = 2
            def c(self, d=3):
                "text"
                if self.low < d:
                    return 4
                if A:
                    return A
        call(5)
    """
    lines = [each.strip() for each in source.splitlines()]
    code = marked("path", [lines.index(line)], dedent(source).strip())
    found = [following.strip() for each, following in pairwise(code.splitlines()) if ".ran(" in each]
    assert found == before


PATH = "msight_bus/data/image.py"
MUTANT = mutants_of(PATH)[0]
A, B = "tests/test_a.py::test_a", "tests/test_b.py::test_b"


class GivenTests:
    """Runs nothing: what tests find is given."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.recording = Recording({A: 1.0, B: 2.0}, {(PATH, MUTANT.mutation.line): {A, B, "a test that fails"}})
        self.recorded = 0
        self.ran = []

    async def record(self, arguments, lines, within):
        self.recorded += 1
        return self.recording

    async def test(self, tests, within, mutant=None):
        self.ran.append((mutant is not None, *tests))
        return self.outcomes.pop(0)


PASSED, FAILED, LATE = Outcome("passed", "", 1.0), Outcome("failed", A, 2.0), Outcome("failed", A, 10.0, late=True)
SLOW, LONG, BROKEN = Outcome("passed", "", 5.0), Outcome("timeout", "", 99.0, late=True), Outcome("failed", "exit")
BOTH, WITHOUT, OTHER, BOTH_WITHOUT = (True, A, B), (False, A), (True, B), (False, A, B)


@pytest.mark.parametrize(
    ("outcomes", "expected", "ran"),
    [
        ([PASSED], ("survived", "2 of 2 tests"), [BOTH]),
        ([FAILED, PASSED], ("killed", A), [BOTH, WITHOUT]),
        ([FAILED, SLOW], ("killed", A), [BOTH, WITHOUT]),
        ([FAILED, FAILED, PASSED], ("survived", "2 of 2 tests"), [BOTH, WITHOUT, OTHER]),
        ([LATE, PASSED], ("killed", A), [BOTH, WITHOUT]),
        ([LATE, SLOW, PASSED], ("survived", "2 of 2 tests"), [BOTH, WITHOUT, OTHER]),
        ([LONG, PASSED], ("killed", "timeout"), [BOTH, BOTH_WITHOUT]),
        ([LONG, LONG], ("untried", "timeout without the mutant"), [BOTH, BOTH_WITHOUT]),
        ([BROKEN, PASSED], ("killed", "exit"), [BOTH, BOTH_WITHOUT]),
    ],
)
async def test_a_failure_counts_if_neither_chance_nor_the_machine_is_its_cause(outcomes, expected, ran):
    tests = GivenTests(*outcomes)
    assert await Trial(tests, Recordings([MUTANT]), 60.0).of(MUTANT) == expected
    assert tests.ran == ran
    assert tests.outcomes == []


async def test_tests_are_recorded_once():
    tests = GivenTests(PASSED, PASSED)
    trial = Trial(tests, Recordings([MUTANT]), 60.0)
    assert await trial.of(MUTANT)
    assert await trial.of(MUTANT)
    assert tests.recorded == len(suites_of(PATH)) == 1


def test_the_closest_tests_of_a_mutant_come_first_then_the_fastest():
    seconds = {"tests/data/test_image.py::test": 3.0, "tests/a.py::test_fast": 1.0, "tests/a.py::test_slow": 2.0}
    recording = Recording({**seconds, "tests/a.py::test_elsewhere": 0.1}, {(PATH, MUTANT.mutation.line): set(seconds)})
    for most, expected in [(60.0, list(seconds)), (4.5, list(seconds)[:2]), (1.0, list(seconds)[:1])]:
        chosen, number = chosen_tests(MUTANT, recording, most)
        assert list(chosen) == expected
        assert number == len(seconds)


@pytest.mark.faults
@pytest.mark.timeout(300)
async def test_tests_in_a_copy_fail_with_a_mutant_only(tmp_path):
    source = "TWO = 2\n\ndef double(n):\n    return n * TWO\n"
    (tmp_path / "doubling.py").write_text(source)
    (tmp_path / "test_it.py").write_text(
        "import os, pytest, time, doubling\n"
        "@pytest.mark.parametrize('what', ['a number'])\n"
        "def test_double(what):\n"
        "    assert doubling.double(4) == 8, what\n"
        "def test_another(): ...\n"
        "def test_deadline(): raise TimeoutError\n"
        "def test_exit(): os._exit(0)\n"
        "def test_hang(): time.sleep(600)\n"
    )
    for module in ("tests/__init__.py", "tests/mutants/__init__.py", "tests/mutants/marking.py"):
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / module, tmp_path / module)
    copy, mutants = Copy(tmp_path), [Mutant("doubling.py", mutation, "") for mutation in mutations(source)]
    double, another, deadline, end, hang = (
        f"test_it.py::test_{name}" for name in ("double[a number]", "another", "deadline", "exit", "hang")
    )

    async def found(tests, within=50, mutant=None):
        outcome = await copy.test(tests, within, mutant)
        return outcome.status, outcome.by, outcome.late

    for mutant in mutants:
        assert await found([another, double], mutant=mutant) == ("failed", double, False)
    assert await found([another, double]) == ("passed", "", False)
    assert await found([deadline]) == ("failed", deadline, True)
    assert (await found([another, end]))[0] == "failed"
    assert await found([hang], 2) == ("timeout", "", True)
    recording = await copy.record([double, another, deadline], {"doubling.py": [1, 4]}, 50)
    assert set(recording.seconds) == {double, another}
    assert recording.tests == {("doubling.py", 1): {double}, ("doubling.py", 4): {double}}
    assert (tmp_path / "doubling.py").read_text() == source
