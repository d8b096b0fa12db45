"""The broker goes away for good while a command that looks at topics runs."""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from msight_bus.topics import NODES_TOPIC
from tests.support.commands import started
from tests.support.rig import own_broker

COMMANDS = {  # with a topic to which the command subscribes
    "redis": {"tail {} --seconds 4": "{}", "topics --observe 4": NODES_TOPIC},
    "nats": {"hz {} --count 1000 --seconds 4": "{}", "top --seconds 4": NODES_TOPIC},
}


def without_its_broker(kind, command, topic):
    """Run a command, kill its broker once it has subscribed, and return its exit status and errors.

    Without an end of its own, the command is interrupted after the disconnect.
    """

    async def subscribed():
        async with asyncio.timeout(40), backend.connect(MSIGHT_ANNOUNCE="false") as bus:
            while not await bus.core.has_subscribers(topic):
                assert process.poll() is None, "the command has ended"
                await asyncio.sleep(0.01)

    with own_broker(kind) as (broker, backend), started(f"exec msight-bus {command}", backend) as process:
        asyncio.run(subscribed())
        broker.kill()
        err = ""
        if not command.endswith(" 4"):
            while ", reconnecting: " not in err:
                err += process.stderr.readline()
            process.send_signal(signal.SIGINT)
        err += process.communicate(timeout=40)[1]
    assert "Traceback" not in err
    assert err.count(", reconnecting: ") == 1
    return process.returncode


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", COMMANDS)
def test_at_the_end_of_the_command_the_exit_status_is_3_and_after_ctrl_c_130(kind, topic):
    commands = {line.format(topic): name.format(topic) for line, name in COMMANDS[kind].items()}
    commands[f"hz {topic}"] = topic
    with ThreadPoolExecutor(len(commands)) as pool:
        results = pool.map(lambda line: without_its_broker(kind, line, commands[line]), commands)
        assert dict(zip(commands, results, strict=True)) == {
            line: 3 if line != f"hz {topic}" else 130 for line in commands
        }
