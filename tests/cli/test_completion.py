"""Completion of topics and nodes, as bash asks for it."""

from __future__ import annotations

import asyncio
import re

import pytest

from msight_bus.cli import completion
from msight_bus.nodes import NodeConfig
from tests.support.brokers import Backend, make_backend
from tests.support.commands import command, in_a_thread, publishing, started
from tests.support.nodes import Collect, running
from tests.support.waiting import wait_until

SCRIPT = """
eval "$(_MSIGHT_BUS_COMPLETE=source_bash msight-bus)"
COMP_WORDS=(msight-bus {words}); COMP_CWORD={number}; _msight_bus_completion msight-bus; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def in_bash(backend, *words):
    """Return what bash offers for the last word."""
    with started(SCRIPT.format(words=" ".join(words), number=len(words)), backend) as process:
        out, err = process.communicate(timeout=50)
    assert (process.returncode, err) == (0, "")
    return out.split()


def offered(backend, *words):
    """Return what is offered for the last word, within 20 seconds: one second is short on a busy machine."""
    asked = {"COMP_WORDS": " ".join(["msight-bus", *words]), "COMP_CWORD": str(len(words))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completion, "_WITHIN", 20.0)
        result = command(backend, _MSIGHT_BUS_COMPLETE="complete_bash", **asked)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.split()


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_a_topic_with_messages(kind, topic):
    backend = make_backend(kind)
    one, two = f"{topic}.one", f"{topic}.two"
    with publishing(backend, {one: lambda _: b"x", two: lambda _: b"x"}):
        wait_until(lambda: offered(backend, "tail", f"{topic}.") == [one, two])
        wait_until(lambda: offered(backend, "pub", "--rate", "2", f"{topic}.o") == [one])
        wait_until(lambda: offered(backend, "hz", one, f"{topic}.") == [two])
        elsewhere = Backend("redis" if kind == "nats" else "nats", backend.env)
        wait_until(lambda: offered(elsewhere, "bw", "--backend", kind, f"{topic}.t") == [two])


def test_a_channel_without_messages_and_one_whose_name_a_shell_would_run(redis, topic):
    import redis as client

    with client.Redis(port=int(redis.env["MSIGHT_REDIS_MESSAGE_BROKER_PORT"])) as foreign:
        with foreign.pubsub() as subscription:
            subscription.subscribe(
                f"{topic}.quiet", f"{topic}.$(touch x)", f"{topic}.`x`", f"{topic}.*", f"{topic}.a b"
            )
            while subscription.get_message(timeout=1.0) is not None:
                pass
            wait_until(lambda: offered(redis, "tail", f"{topic}.") == [f"{topic}.quiet"])


def test_a_channel_among_thousands(redis, topic):
    import redis as client

    names = [f"{topic}.n{number:04}" for number in range(3020)]
    with client.Redis(port=int(redis.env["MSIGHT_REDIS_MESSAGE_BROKER_PORT"])) as foreign:
        with foreign.pubsub() as subscription:
            subscription.subscribe(*names)
            for _ in names:
                subscription.get_message(timeout=20.0)
            assert offered(redis, "tail", f"{topic}.n301") == names[3010:]


def test_names_are_limited_after_those_that_begin_otherwise_are_left_out():
    names = completion.Names("site.w")
    for number in range(2000):
        names.add_topic(f"site.other{number}")
    names.add_topic("site.wanted")
    assert names.topics == {"site.wanted"}


def test_a_node(nats, topic):
    name = topic.replace(".", "-")

    async def work(bus, ready, stop):
        config = NodeConfig(name=name, subscribe_topic_name=f"{topic}.in", heartbeat_update_interval=0.1)
        async with running(bus, Collect(config)):
            ready()
            while not stop.is_set():
                await asyncio.sleep(0.01)

    with in_a_thread(nats, work):
        wait_until(lambda: offered(nats, "top", name) == [name])
        wait_until(lambda: offered(nats, "tail", f"{topic}.") == [f"{topic}.in"])


def test_commands_options_and_backends_need_no_broker():
    nowhere = Backend("nats", {"MSIGHT_NATS_SERVERS": "nats://127.0.0.1:1"})
    assert in_bash(nowhere, "t") == ["topics", "tail", "top"]
    assert in_bash(nowhere, "tail", "--backend", "n") == ["nats"]


@pytest.mark.parametrize("servers", ["nats://127.0.0.1:1", "["], ids=["no broker", "wrong settings"])
def test_an_error_offers_nothing_and_says_nothing(servers):
    assert in_bash(Backend("nats", {"MSIGHT_NATS_SERVERS": servers}), "tail", "x") == []


def test_help_names_the_option(nats):
    with started("msight-bus --help", nats) as process:
        out, _ = process.communicate(timeout=50)
    assert re.search(r"--install-completion\b", out)
