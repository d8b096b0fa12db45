"""The limits of Redis and NATS for the messages that are sent."""

from __future__ import annotations

import json
import re
import shlex

from tests.support.brokers import make_backend, start_broker
from tests.support.commands import command, publishing
from tests.support.examining import examine
from tests.support.servers import start


def run_redis_cli(advice, port):
    """Run the command of the advice on the broker, through redis-py: there is no redis-cli."""
    import redis

    words = shlex.split(re.search(r"`redis-cli (.*?)`", advice)[1])
    with redis.Redis(port=port) as client:
        client.execute_command(*words)


def test_an_output_buffer_that_is_too_small_for_the_frames_and_the_advice_ends_it(topic):
    broker = start_broker("redis", ["client-output-buffer-limit pubsub 1mb 1mb 60"])
    backend = make_backend("redis", broker)
    with broker, publishing(backend, {topic: lambda _: bytes(400_000)}, rate=5):
        status, found = examine(backend, topic, seconds=0.5)
        assert (status, list(found)) == (1, ["output buffer"])
        assert "the largest message has 400,000 bytes" in found["output buffer"]["problem"]
        run_redis_cli(found["output buffer"]["advice"], broker.port)
        assert examine(backend, topic, seconds=0.5) == (0, {})


def test_a_message_that_redis_does_not_deliver(redis):
    status, found = examine(redis, "--message-bytes", "40000000")
    assert status == 1
    assert "message size" in found
    assert "output buffer" in found


def test_config_get_that_is_not_permitted_is_a_note():
    with start("redis", config=["user default on nopass ~* &* +@all -config"]) as broker:
        status, found = examine(make_backend("redis", broker))
    assert status == 0
    assert found["output buffer"]["fault"] is False
    assert "does not permit CONFIG GET" in found["output buffer"]["problem"]


def test_a_frame_above_max_payload_and_the_advice_ends_it():
    with start("nats", config=[]) as broker:
        backend = make_backend("nats", broker)
        status, found = examine(backend, "--message-bytes", "9000000", MSIGHT_MAX_MESSAGE_BYTES="100000000")
        assert (status, list(found)) == (1, ["message size"])
        line = re.search(r"`(max_payload: \d+)`", found["message size"]["advice"])[1]
    with start("nats", config=[line]) as broker:
        backend = make_backend("nats", broker)
        assert examine(backend, "--message-bytes", "9000000", MSIGHT_MAX_MESSAGE_BYTES="100000000") == (0, {})


def test_a_frame_above_the_limit_of_the_bus(nats):
    status, found = examine(nats, "--message-bytes", "5000", MSIGHT_MAX_MESSAGE_BYTES="4096")
    assert (status, list(found)) == (1, ["message size"])
    assert "`export MSIGHT_MAX_MESSAGE_BYTES=10000`" in found["message size"]["advice"]
    assert examine(nats, "--message-bytes", "5000", MSIGHT_MAX_MESSAGE_BYTES="10000") == (0, {})


def test_a_user_who_may_not_see_nodes_gets_the_other_checks(topic):
    with start("redis", config=[f"user default on nopass ~* resetchannels &{topic} +@all"]) as broker:
        backend = make_backend("redis", broker)
        with publishing(backend, {topic: lambda _: b"x"}):
            result = command(backend, "doctor", topic, "--observe", "0.5", "--json")
            status, found = examine(backend, f"{topic}.other")
    assert (result.exit_code, "Nodes and programs are not shown: Redis refused" in result.stderr) == (0, True)
    assert json.loads(result.stdout)["messages"] > 1
    assert (status, found["observation"]["fault"]) == (1, True)
