"""A program of nodes ends within its deadline, with the documented exit status, and logs what was left."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support.programs import environment, program, ready

PROGRAM = """
import asyncio, multiprocessing, os, signal, sys, threading, time
from msight_bus.nodes import NodeConfig, SinkNode, SourceNode, off_loop, run_nodes

how = sys.argv[1]

def hang():
    print("ready", flush=True)
    threading.Event().wait()

def hang_in_a_process():
    print("ready", os.getpid(), sep="\\n", flush=True)
    time.sleep(600)

def compute(data):
    print("ready", flush=True)
    time.sleep(1.0)
    return data

async def refuse():
    print("ready", flush=True)
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

class Source(SourceNode):
    async def stream(self):
        yield b"x"
        await asyncio.Event().wait()

class Sink(SinkNode):
    async def on_message(self, data):
        if how == "thread":
            await off_loop(hang)
        elif how == "to_thread":
            await asyncio.to_thread(hang)
        elif how == "process":
            await off_loop(hang_in_a_process, process=True)
        elif how == "refuses":
            await refuse()
        elif how == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.Event().wait())
                group.create_task(asyncio.Event().wait())
                print("ready", flush=True)
        elif how == "child":
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
            child.start()
            await asyncio.sleep(0.2)
            child.terminate()
            child.join(10)
            print("child", child.exitcode, flush=True)
            print("ready", flush=True)
        elif how == "computes":
            result = await off_loop(compute, data, process=True)
            print("computed", result, flush=True)
        elif how == "fails":
            print("ready", flush=True)
            raise ZeroDivisionError("the handler failed")
        elif how == "cancels itself":
            asyncio.current_task().cancel()
            print("ready", flush=True)
        else:
            print("ready", flush=True)

if __name__ == "__main__":
    run_nodes(
        Sink(NodeConfig(name="sink", subscribe_topic_name="a")),
        Source(NodeConfig(name="source", publish_topic_name="a")),
        end_with_sources=how in ("fails", "cancels itself"),
    )
    print("drained", flush=True)
"""


def running(tmp_path, how, **settings):
    """The program, once it has something in hand."""
    return ready(program(tmp_path, PROGRAM), how, env=environment(**settings))


LEFT = {
    "thread": r"hang \(a thread, \d+ s\)",
    "to_thread": None,
    "process": None,
    "refuses": "ignores its cancellation",
    "group": None,
}


@pytest.mark.parametrize("how", LEFT)
def test_a_program_that_hangs_ends_at_the_deadline_with_status_1_and_logs_what_was_left(tmp_path, how):
    with running(tmp_path, how) as process:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    assert re.search(r"DrainTimeoutError: Not drained within 1 s .*left: 1 message at node sink", err), err
    if LEFT[how] is not None:
        assert re.search(rf"Left running: .*{LEFT[how]}", err), err
    assert "drained" not in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", LEFT)
def test_a_second_signal_ends_a_program_that_hangs_with_its_number(tmp_path, how, number):
    with running(tmp_path, how, MSIGHT_DRAIN_TIMEOUT="600") as process:
        process.send_signal(signal.SIGTERM)
        for line in process.stderr:
            if "another signal stops at once" in line:
                break
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert how == "refuses" or "Traceback" not in err


def test_a_drained_program_ends_with_0(tmp_path):
    with running(tmp_path, "ends") as process:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "drained\n"), err


def test_a_node_that_fails_is_status_1_and_its_error_is_logged_once(tmp_path):
    with running(tmp_path, "fails") as process:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.count("Traceback (most recent call last)") == 1, err
    assert err.splitlines()[-1] == "ZeroDivisionError: the handler failed"


def test_a_handler_that_leaves_its_task_cancelled_is_an_error(tmp_path):
    with running(tmp_path, "cancels itself") as process:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    assert "cancelled the task in which it runs" in err


def test_a_forked_child_ends_at_sigterm(tmp_path):
    with running(tmp_path, "child") as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_forked_child_has_the_previous_signal_handlers(tmp_path):
    command = [sys.executable, program(tmp_path, PROGRAM), "child"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == f"child {-signal.SIGTERM}\n"
        finally:
            process.kill()


def test_ctrl_c_on_a_terminal_drains_calls_in_processes(tmp_path):
    """The terminal sends SIGINT to the whole process group, including the worker process."""
    command = [sys.executable, program(tmp_path, PROGRAM), "computes"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, command, environment(MSIGHT_DRAIN_TIMEOUT="30"))
    said = b""
    deadline = time.monotonic() + 40
    sent = False
    try:
        while time.monotonic() < deadline:
            try:
                said += os.read(terminal, 4096)
            except OSError:  # EIO: the terminal is closed at the end of the program
                break
            if b"ready" in said and not sent:
                sent = True
                os.write(terminal, b"\x03")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, said
    assert b"computed b'x'" in said
    assert b"drained" in said
    assert b"Traceback" not in said


def test_sigterm_to_the_whole_group_drains_calls_in_processes(tmp_path):
    """(celery 2700, 3631, kombu 1836) systemd and supervisord send SIGTERM to the worker processes, too."""
    env = environment(MSIGHT_DRAIN_TIMEOUT="30")
    with ready(program(tmp_path, PROGRAM), "computes", env=env, new_session=True) as process:
        os.killpg(process.pid, signal.SIGTERM)
        said, errors = process.communicate(timeout=40)
    assert said == "computed b'x'\ndrained\n", errors
    assert process.returncode == 0


def test_a_process_of_off_loop_ends_with_a_program_that_is_killed(tmp_path):
    with running(tmp_path, "process") as process:
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        with pytest.raises(ProcessLookupError):
            for _ in range(1000):
                os.kill(child, 0)
                time.sleep(0.02)


def test_without_a_broker_a_program_prints_one_sentence_and_ends_with_status_1(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    variables = {"MSIGHT_PUBSUB_BACKEND": "redis", "MSIGHT_REDIS_MESSAGE_BROKER_PORT": f"{port}"}
    done = subprocess.run(
        [sys.executable, program(tmp_path, PROGRAM), "ends"],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("ConnectionLostError: Redis at localhost:"), line
