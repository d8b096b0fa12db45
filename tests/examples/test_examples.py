"""Every example runs, and prints what it promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.programs import run

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("backend", ["memory", "redis", "nats", "kafka"])
def test_hello(backend):
    assert f"{backend}: intersection.cam_ne b'hello' {{'lens': 'wide'}} sequence 1" in run(
        "examples/hello.py", backend=backend
    )


@pytest.mark.parametrize("backend", ["memory", "nats", "kafka"])
def test_load_sharing(backend):
    assert "shared" in run("examples/load_sharing.py", backend=backend)


def test_load_sharing_where_there_is_none():
    output = run("examples/load_sharing.py", backend="redis")
    assert "CapabilityWarning" in output
    assert "worker 2 received 300 of 300 frames" in output


@pytest.mark.parametrize("backend", ["memory", "redis", "nats", "kafka"])
def test_slow_consumer(backend):
    output = run("examples/slow_consumer.py", backend=backend)
    assert "block        handled 100 of 100 frames, dropped {}" in output
    assert re.search(r"latest +handled .*dropped {.*'latest': \d+", output), output


def test_replay():
    output = run("examples/replay.py", backend="kafka")
    assert output.count("from the beginning: frame") == 6
    assert "from a time on: frame 5" in output
    assert "MSIGHT_PUBSUB_BACKEND=kafka" in run("examples/replay.py", backend="nats")


@pytest.mark.parametrize("backend", ["memory", "redis", "kafka"])
def test_cpu_bound(backend):
    assert "20 frames processed in threads" in run("examples/cpu_bound.py", backend=backend)


def test_unit_test():
    assert "2 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/unit_test.py")


@pytest.mark.parametrize("backend", ["memory", "redis", "nats", "kafka"])
def test_typed(backend):
    output = run("examples/typed.py", backend=backend)
    assert "not sent: The payload must be of type Track, not str." in output
    assert re.search(r"cam_ne: 12\.5 m/s.*\nskipped: .* cannot be decoded as Track: .*\ncam_sw: 8\.0 m/s", output), (
        output
    )
    assert "{'cam_ne': 1, 'cam_sw': 1}" in output


@pytest.mark.parametrize("backend", ["memory", "redis", "nats", "kafka"])
def test_from_a_thread(backend):
    source = (ROOT / "examples/from_a_thread.py").read_text()
    assert "threading.Thread" in source
    assert "run_coroutine_threadsafe" in source
    assert "frame" in run("examples/from_a_thread.py", backend=backend)
