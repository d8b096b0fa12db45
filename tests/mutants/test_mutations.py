"""What is mutated, how, and what is left alone; which mutants are chosen, and by which tests they are tried."""

from __future__ import annotations

import pytest

from tests.mutants.__main__ import Trial
from tests.mutants.mutations import mutations
from tests.mutants.running import Copy, Outcome
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


@pytest.mark.parametrize("path", PATHS)
def test_the_mutants_of_a_file_differ_and_compile(path):
    source = (PROJECT / path).read_text()
    mutants = mutants_of(path)
    assert len({mutant.identity for mutant in mutants}) == len(mutants)
    for mutant in mutants[::20]:
        changed = mutant.mutation.apply(source)
        assert changed != source
        compile(changed, path, "exec")


@pytest.mark.parametrize("path", PATHS)
def test_each_file_has_tests_that_exist(path):
    suites = suites_of(path)
    files = [name for suite in suites for name in suite if name.startswith("tests/")]
    assert files
    assert [name for name in files if not (PROJECT / name).exists()] == []


def test_the_closest_tests_come_first():
    kafka, contract = suites_of("msight_bus/backends/kafka/producer.py")
    assert kafka[0] == "tests/backends/kafka/test_producer.py"
    assert "tests/backends/kafka/test_group.py" in kafka
    assert contract == ["tests/contract", "-k", "kafka"]
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


class GivenTests:
    """Runs nothing: what tests find is given."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.limits = []
        self.ran = []
        self.mutated = False

    def with_mutant(self, mutant):
        return self

    def __enter__(self):
        self.mutated = True

    def __exit__(self, *error):
        self.mutated = False

    def test(self, arguments, within):
        self.limits.append((self.mutated, within))
        self.ran.append(arguments)
        return self.outcomes.pop(0)


PASSED, FAILED, LATE = (
    Outcome("passed", "", 10.0),
    Outcome("failed", "tests/test_a.py::test_a", 2.0),
    Outcome("timeout", "", 90.0),
)


@pytest.mark.parametrize(
    ("outcomes", "status", "by"),
    [
        ([PASSED, FAILED], "killed", "tests/test_a.py::test_a"),
        ([PASSED, LATE], "killed", "timeout"),
        ([PASSED, PASSED, PASSED, PASSED], "survived", ""),
        ([PASSED, PASSED, PASSED, FAILED], "killed", "tests/test_a.py::test_a"),
        ([LATE], "untried", "without a mutation: timeout "),
        ([FAILED] * 4, "untried", "without a mutation: failed tests/test_a.py::test_a"),
    ],
)
def test_a_mutant_is_killed_by_tests_that_pass_without_it(outcomes, status, by):
    tests = GivenTests(*outcomes)
    found = Trial(tests).of(mutants_of("msight_bus/backends/kafka/producer.py")[0])
    assert (found["status"], found["by"]) == (status, by)
    assert tests.outcomes == []
    if status != "untried":
        assert tests.limits == [(False, 900.0), (True, 90.0), (False, 900.0), (True, 90.0)][: len(outcomes)]


def test_a_test_that_fails_without_a_mutation_is_left_out():
    tests = GivenTests(FAILED, PASSED, FAILED)
    found = Trial(tests).of(mutants_of("msight_bus/data/image.py")[0])
    assert (found["status"], found["by"]) == ("killed", "tests/test_a.py::test_a")
    assert tests.ran[1] == tests.ran[2] == [*tests.ran[0], "--deselect=tests/test_a.py::test_a"]


def test_tests_in_a_copy_fail_with_a_mutant_only(tmp_path):
    source = "def double(n):\n    return n + n\n"
    (tmp_path / "doubling.py").write_text(source)
    (tmp_path / "test_it.py").write_text(
        "import pytest, doubling\n"
        "@pytest.mark.parametrize('what', ['a number'])\n"
        "def test_double(what):\n"
        "    assert doubling.double(2) == 4, what\n"
        "def test_hang():\n"
        "    import time; time.sleep(600)\n"
    )
    (mutation,) = mutations(source)
    copy, others = Copy(tmp_path), ["test_it.py", "--deselect=test_it.py::test_hang"]
    with copy.with_mutant(Mutant("doubling.py", mutation, "")):
        outcome = copy.test(others, 50)
    assert (outcome.status, outcome.by) == ("failed", "test_it.py::test_double[a number]")
    assert copy.test(others, 50).status == "passed"
    assert copy.test(["test_it.py", f"--deselect={outcome.by}"], 2).status == "timeout"
