"""SIGTERM and SIGINT, in a separate process."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.support.programs import environment, program, ready

PROGRAM = """
import asyncio, sys, time
if "no-uvloop" in sys.argv:
    sys.modules["uvloop"] = None
from msight_bus.nodes import NodeConfig, ProcessingNode, SinkNode, SourceNode, run_nodes

class Source(SourceNode):
    given = 0
    async def get_data(self):
        await asyncio.sleep(0.001)
        self.given += 1
        return b"%d" % self.given

class Step(ProcessingNode):
    async def process(self, data):
        if data == b"20":
            print("ready", flush=True)
            if "stuck" in sys.argv:
                await asyncio.Event().wait()
            if "busy" in sys.argv:
                while True:
                    time.sleep(0.01)
                    print(time.monotonic(), flush=True)
        return data

class Sink(SinkNode):
    taken = 0
    async def on_message(self, data):
        self.taken += 1
    async def on_stop(self):
        await asyncio.sleep(0)
        print("stopped in order", flush=True)

source = Source(NodeConfig(name="source", publish_topic_name="a"))
sink = Sink(NodeConfig(name="sink", subscribe_topic_name="b"))
run_nodes(sink, Step(NodeConfig(name="step", subscribe_topic_name="a", publish_topic_name="b")), source)
print("lost", source.given - sink.taken, flush=True)
"""


def running(tmp_path, *arguments, drain_timeout="30"):
    """The program, once it has something in hand."""
    return ready(program(tmp_path, PROGRAM), *arguments, env=environment(MSIGHT_DRAIN_TIMEOUT=drain_timeout))


@pytest.mark.parametrize("loop", ["uvloop", "no-uvloop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(tmp_path, number, loop):
    with running(tmp_path, loop) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert out == "stopped in order\nlost 0\n"
    assert "Traceback" not in err
    assert "Warning" not in err
    assert process.returncode == 0


@pytest.mark.parametrize("loop", ["uvloop", "no-uvloop"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("how", ["stuck", "busy"])
def test_the_second_signal_ends_at_once(tmp_path, number, code, loop, how):
    with running(tmp_path, loop, how) as process:
        process.send_signal(number)
        until_handled(process, how)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out.endswith("stopped in order\n")
    assert "Error" not in err
    assert "Traceback" not in err


def test_the_deadline_of_the_drain(tmp_path):
    with running(tmp_path, "stuck", drain_timeout="0.2") as process:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert "stopped in order" in out
    assert "DrainTimeoutError: Not drained within 0.2 s" in err
    assert process.returncode == 1


def until_handled(process, how):
    """Wait until Python has run the first signal's handler: a second one that comes before is one with the first."""
    if how == "stuck":
        while "another signal stops at once" not in process.stderr.readline():
            pass
        return
    status = Path(f"/proc/{process.pid}/status")
    pending = True
    while pending:
        masks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
        pending = any(int(mask, 16) for mask in masks)
    seen = time.monotonic()
    while float(process.stdout.readline()) < seen + 0.5:  # two signals at a time are one request
        pass
