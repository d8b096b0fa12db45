"""No server outlives the interpreter that started it, however that ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from msight_bus.brokers.process import GuardedProcess
from tests.support.waiting import wait_until

PARENT = """
import json, signal, sys, threading
from msight_bus import brokers
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits these ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def start():
    broker = brokers.start(sys.argv[1])
    print(json.dumps([broker.pid, str(broker.log_path.parent)]), flush=True)
thread = threading.Thread(target=start)  # which ends at once: the broker must not care
thread.start()
thread.join()
sys.stdin.read()
"""

PREPARING = """
import os, sys
from pathlib import Path
from msight_bus.brokers.process import GuardedProcess
folder = Path(sys.argv[1], "folder")
folder.mkdir()
guarded = GuardedProcess(folder, folder / "log")
guarded.start(["/bin/sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1 & wait; done"])
os.write(1, f'[{guarded.pid}, "{folder}"]\\n'.encode())
os._exit(1) if sys.argv[2] == "exit" else guarded.wait()
"""


def run(program, *arguments):
    """Start a Python program that prints the process id and folder of what it guards; return all three."""
    parent = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the traceback of an interrupt
        text=True,
    )
    pid, folder = json.loads(parent.stdout.readline() or "null") or pytest.fail("nothing was started")
    return parent, pid, Path(folder)


def group_is_gone(leader):
    ps = ["ps", "-A", "-o", "pgid=,stat="]
    listed = subprocess.run(ps, capture_output=True, text=True, check=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return not any(group == str(leader) and not state.startswith("Z") for group, state in rows)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("redis", signal.SIGKILL),
        ("nats", signal.SIGKILL),
        ("kafka", signal.SIGKILL),
        ("nats", signal.SIGTERM),
        ("nats", signal.SIGINT),
        ("nats", signal.SIGHUP),
    ],
)
def test_killed_parent_leaves_no_orphan(kind, number, require_broker, is_gone):
    require_broker(kind)
    parent, pid, folder = run(PARENT, kind)
    with parent:
        assert not is_gone(pid)
        parent.send_signal(number)
        wait_until(lambda: is_gone(pid) and not folder.exists())


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_stubborn_process_and_its_children_end_too(end, tmp_path):
    parent, pid, folder = run(PREPARING, str(tmp_path), end)
    with parent:
        if end == "kill":
            parent.kill()
        wait_until(lambda: group_is_gone(pid) and not folder.exists())


def test_the_watchdog_goes_with_its_server(tmp_path, is_gone):
    folder = tmp_path / "folder"
    folder.mkdir()
    guarded = GuardedProcess(folder, folder / "log")
    watchdog = guarded._watchdog.pid
    assert not is_gone(watchdog)
    guarded.start(["/bin/sh", "-c", "echo hello; exit 3"])
    assert guarded.wait() == 3
    assert (folder / "log").read_text() == "hello\n"
    guarded.signal(signal.SIGTERM)
    guarded.kill()
    guarded.close()
    guarded.close()
    assert is_gone(watchdog)
    assert not folder.exists()
