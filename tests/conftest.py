"""Runs coroutine tests on a fresh loop, fails what leaks, and starts real brokers once for the whole run."""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import hypothesis
import pytest

from msight_bus.runtime import loop_factory
from msight_bus.testing import Simulation, VirtualClockLoop
from tests.support.brokers import (
    BACKENDS,
    Backend,
    describe_brokers,
    give_back,
    make_backend,
    share_brokers,
    stop_brokers,
)

pytest_plugins = ["tests.support.retrying"]

# The processes of a run and the programs that they start compile a module once, not each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

_TEST_WITHIN = 55.0


# Machines differ in speed, and CI tells whether this change broke something, not whether luck found something old.
hypothesis.settings.register_profile("suite", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("suite")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Share the brokers before the workers start."""
    share_brokers()


def pytest_unconfigure() -> None:
    stop_brokers()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def`` test; a task that it leaves behind fails it."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    marker = pyfuncitem.get_closest_marker("timeout")
    within = marker.args[0] if marker is not None else _TEST_WITHIN
    simulated = any(isinstance(argument, Simulation) for argument in arguments.values())

    async def watched() -> None:
        before = asyncio.all_tasks()
        # uvloop is not interrupted by pytest-timeout's signal; a virtual clock has no use for real seconds
        async with asyncio.timeout(None if simulated else within):
            await pyfuncitem.obj(**arguments)
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - before
        assert not left, f"tasks left behind: {sorted(task.get_name() for task in left)}"

    with asyncio.Runner(loop_factory=VirtualClockLoop if simulated else loop_factory()) as runner:
        runner.run(watched())
    gc.collect()  # an unclosed resource warns now, in the test that leaked it
    return True


def pytest_collection(session: pytest.Session) -> None:
    """In a worker, first import the test modules from another one on than the other workers, so that each compiles a part.

    The modules and tests all stay, so that `gc` would only count them again and again.
    """
    gc.disable()
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None:
        return
    root = session.config.rootpath
    paths = sorted(path for given in session.config.args for path in (root / given).rglob("test_*.py"))
    start = len(paths) * int(worker.removeprefix("gw")) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for path in paths[start:] + paths[:start]:
        with suppress(Exception, pytest.skip.Exception):  # the collection reports it
            importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files that take few seconds at the end, so that no process of a parallel run is left with a long one."""
    items.sort(key=lambda item: item.path.parent.name in _SHORT)


_SHORT = {"data", "protocol", "settings"}


def pytest_collection_finish() -> None:
    """Keep what exists before the tests out of `gc.collect`, which otherwise takes longer than most tests."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Give back brokers, and keep what a test leaves behind, such as imported modules, out of `gc.collect` after later tests."""
    yield
    give_back()
    gc.collect()  # what is garbage now, freezing would keep
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where tests run in several processes, let the first one know which brokers this one had."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["brokers"] = describe_brokers()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a process that ran tests says of its brokers."""
    _brokers_elsewhere.update(getattr(node, "workeroutput", {}).get("brokers", ()))


_brokers_elsewhere: set[str] = set()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what the suite ran against, and which files took longest."""
    terminalreporter.section("brokers")
    lines = _brokers_elsewhere.union(describe_brokers())
    for line in sorted(lines) or ["none was needed"]:
        terminalreporter.write_line(line)

    seconds: Counter[str] = Counter()
    for report in itertools.chain(*terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            seconds[report.location[0]] += report.duration
    terminalreporter.section("longest files")
    for path, total in seconds.most_common(5):
        terminalreporter.write_line(f"{total:.0f} s  {path}")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn."""
    return make_backend(request.param)


@pytest.fixture
def memory() -> Backend:
    return make_backend("memory")


@pytest.fixture
def kafka() -> Backend:
    return make_backend("kafka")


@pytest.fixture
def redis() -> Backend:
    return make_backend("redis")


@pytest.fixture
def nats() -> Backend:
    return make_backend("nats")


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic that no other test uses."""
    _topics.append(request.node.name)
    return f"t{os.getpid()}.{len(_topics)}"


_topics: list[str] = []
