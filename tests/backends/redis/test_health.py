"""Replies of a Redis server from which the health check tells whether messages reach the other servers."""

from __future__ import annotations

import asyncio
import re
import time

import hiredis
import pytest

from msight_bus.backends.redis.health import REPLIES, Health, health_commands
from tests.support.scripted_peers import ScriptedPeer, bus_at

MASTER = [b"master", 0, []]
REPLICA = [b"slave", b"10.0.0.1", 6379, b"connected", 0]
REPLICATION = b"# Replication\r\nrole:slave\r\nmaster_host:10.0.0.1\r\nmaster_port:6379\r\n"
NO_CLUSTER = hiredis.ReplyError("ERR This instance has cluster support disabled")
DENIED = hiredis.ReplyError("NOPERM User alice has no permissions to run the 'role' command")
UNKNOWN = hiredis.ReplyError("ERR unknown command 'CLUSTER'")

ALONE, NODE = Health(use_cluster=False, nodes=1), Health(use_cluster=True, nodes=3)


def state(value="ok", known=3):
    return f"cluster_state:{value}\r\ncluster_known_nodes:{known}\r\n".encode()


def test_the_question_is_as_many_commands_as_there_are_replies():
    reader = hiredis.Reader()
    reader.feed(health_commands())
    commands = [reader.gets() for _ in range(REPLIES)]
    assert commands == [[b"ROLE"], [b"INFO", b"replication"], [b"CLUSTER", b"INFO"]]
    assert reader.gets() is False


@pytest.mark.parametrize(
    ("health", "replies"),
    [
        pytest.param(ALONE, (MASTER, b"role:master", NO_CLUSTER), id="a master"),
        pytest.param(ALONE, (DENIED, DENIED, DENIED), id="nothing permitted"),
        pytest.param(NODE, (DENIED, DENIED, DENIED), id="nothing permitted in a cluster"),
        pytest.param(ALONE, (UNKNOWN, b"OK", UNKNOWN), id="another make"),
        pytest.param(ALONE, (None, None, None), id="nothing said"),
        pytest.param(ALONE, ([], b"\xff\n:", b""), id="nonsense"),
        pytest.param(NODE, (MASTER, b"", state()), id="a node"),
        pytest.param(NODE, (REPLICA, REPLICATION, state()), id="a replica in a cluster"),
        pytest.param(NODE, (REPLICA, REPLICATION, DENIED), id="a replica, where the cluster is not to be asked"),
        pytest.param(Health(use_cluster=True, nodes=1), (MASTER, b"", state(known=1)), id="one node, one configured"),
        pytest.param(ALONE, (MASTER, b"", state("fail", 1)), id="cluster mode without a cluster, and none is meant"),
    ],
)
def test_no_problem(health, replies):
    assert health.problem(replies) is None


@pytest.mark.parametrize(
    ("health", "replies", "told"),
    [
        pytest.param(ALONE, (REPLICA, REPLICATION, NO_CLUSTER), r"replica of 10\.0\.0\.1:6379", id="a replica"),
        pytest.param(ALONE, (DENIED, REPLICATION, DENIED), r"replica of 10\.0\.0\.1:6379", id="by INFO alone"),
        pytest.param(ALONE, (REPLICA, DENIED, DENIED), r"replica of 10\.0\.0\.1:6379", id="by ROLE alone"),
        pytest.param(ALONE, ([b"sentinel", [b"m"]], b"", UNKNOWN), "Sentinel", id="a Sentinel"),
        pytest.param(NODE, (MASTER, b"", NO_CLUSTER), "cluster_enabled:0", id="standalone"),
        pytest.param(NODE, (MASTER, b"", state("fail")), "cluster_state:fail", id="failed"),
        pytest.param(ALONE, (MASTER, b"", state("fail")), "cluster_state:fail", id="failed, by one address"),
        pytest.param(NODE, (MASTER, b"", state(known=1)), "cluster_known_nodes:1", id="forgotten"),
    ],
)
def test_a_problem_is_told(health, replies, told):
    problem = health.problem(replies)
    assert problem is not None
    assert re.search(told, problem)


def test_what_the_server_says_is_quoted():
    problem = ALONE.problem(([b"slave", b"\x1b[2J\n", 1, b"connected", 0], b"", NO_CLUSTER))
    assert problem is not None
    assert problem.isprintable()


def test_an_answer_that_comes_when_the_next_question_is_due_is_judged_by_itself():
    """On asyncio's own loop the next question is then asked before the answer is looked at."""
    every = 0.05

    def answer(command):
        if command.verb == "CLUSTER":
            time.sleep(2 * every)

    async def busy():
        peer = ScriptedPeer("redis", answer)
        async with bus_at(peer, MSIGHT_PING_INTERVAL=f"{every}", MSIGHT_ANNOUNCE="false"):
            await peer.until(lambda: len(peer.told("CLUSTER")) > 6)

    asyncio.run(busy())
