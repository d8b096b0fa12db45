"""Faults of nodes and their topics, on real brokers: each is found once, and a healthy system has none."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import time

import msgspec
import pytest

from msight_bus.announcements import NodeInfo, NodeMetrics, NodeStatus, ProgramInfo, ProgramTopic
from msight_bus.doctor.evidence import Evidence
from msight_bus.doctor.nodes import (
    clocks,
    differs_by_a_letter,
    ended_badly,
    ends,
    failing,
    lost_programs,
    same_instance_id,
    same_name,
    silent,
    unpublished,
)
from msight_bus.message import Message
from msight_bus.nodes import NodeConfig
from msight_bus.settings import BusSettings
from msight_bus.topics import NODES_TOPIC
from tests.support.brokers import make_backend_alone
from tests.support.commands import command, in_a_thread, publishing
from tests.support.nodes import Collect, Numbers, running

LIVE = ["redis", "nats"]


def examine(backend, *arguments, seconds="1.5", **variables):
    result = command(backend, "doctor", "--observe", seconds, "--json", *arguments, **variables)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return (
        result.exit_code,
        [one for one in found if one.get("fault")],
        [one for one in found if "topic" in one],
    )


def nodes(*make):
    """Run nodes in another thread until the command has ended."""

    async def work(bus, ready, stop):
        async with running(bus, *[kind(NodeConfig(heartbeat_update_interval=0.2, **config)) for kind, config in make]):
            ready()
            while not stop.is_set():
                await asyncio.sleep(0.01)

    return work


class Slow(Numbers):
    async def get_data(self):
        await asyncio.sleep(0.01)
        return await super().get_data()


@pytest.mark.parametrize("kind", [*LIVE, "kafka"])
def test_messages_that_arrive(kind, topic):
    backend = make_backend_alone(kind)
    work = nodes(
        (Collect, {"name": "sink", "subscribe_topic_name": topic}), (Slow, {"name": "cam", "publish_topic_name": topic})
    )
    with in_a_thread(backend, work):
        status, faults, (line,) = examine(backend, topic)
    assert (status, faults) == (0, [])
    assert (line["topic"], line["publishers"], line["subscribers"]) == (topic, ["cam"], ["sink"])
    assert (line["sessions"], line["gaps"], line["missing"], line["dropped"]) == (1, 0, 0, 0)
    assert line["messages"] > 10


@pytest.mark.parametrize("kind", LIVE)
def test_a_topic_without_a_message_and_the_command_of_the_advice_publishes_one(kind, topic):
    backend = make_backend_alone(kind)
    status, faults, (line,) = examine(backend, topic, seconds="0.2")
    assert (status, [one["check"] for one in faults], line["messages"]) == (1, ["arrival"], 0)
    advised = re.search("`msight-bus (.*?)`", faults[0]["advice"])[1].split()
    assert command(backend, *advised).stdout == f"1 message on {topic}\n"


@pytest.mark.parametrize("kind", LIVE)
def test_a_topic_that_differs_by_a_letter_from_that_of_a_program(kind, topic):
    backend = make_backend_alone(kind)
    with publishing(backend, {f"{topic}.cam_ne": lambda _: b"x"}):
        status, faults, _ = examine(backend, f"{topic}.cam_nw", seconds="0.5")
        assert (status, [one["check"] for one in faults]) == (1, ["topics"])
        assert f"replace it by {topic}.cam_ne in the command line" in faults[0]["advice"]
        assert examine(backend, f"{topic}.cam_ne", seconds="0.5")[:2] == (0, [])


def test_an_input_that_differs_by_a_letter_from_an_output(nats, topic):
    work = nodes(
        (Collect, {"name": "sink", "subscribe_topic_name": f"{topic}.cams"}),
        (Slow, {"name": "cam", "publish_topic_name": f"{topic}.cam"}),
    )
    with in_a_thread(nats, work):
        status, faults, _ = examine(nats)
    (fault,) = [one for one in faults if topic in one["problem"]]
    assert (status, fault["check"]) == (1, "topics")
    assert f"replace it by {topic}.cam in the node sink" in fault["advice"]


@pytest.mark.parametrize("kind", LIVE)
def test_two_nodes_of_one_name(kind, topic):
    backend = make_backend_alone(kind)
    name = topic.replace(".", "-")
    one, other = {"name": name, "publish_topic_name": f"{topic}.a"}, {"name": name, "publish_topic_name": f"{topic}.b"}
    with in_a_thread(backend, nodes((Slow, one), (Slow, other))):
        status, faults, _ = examine(backend, f"{topic}.>")
        assert (status, [fault["check"] for fault in faults]) == (1, ["names"])
        assert f'`NodeConfig(name="{name}-2", ...)`' in faults[0]["advice"]
    with in_a_thread(backend, nodes((Slow, one), (Slow, one))):
        assert examine(backend, f"{topic}.>")[:2] == (0, [])


@pytest.mark.parametrize("kind", LIVE)
def test_two_workers_of_one_identity(kind, topic):
    backend = make_backend_alone(kind)
    name = topic.replace(".", "-")
    one, other = [
        {"name": name, "publish_topic_name": topic, "instance_id": identity} for identity in ("worker-1", "worker-2")
    ]
    with in_a_thread(backend, nodes((Slow, one), (Slow, one))):
        status, faults, _ = examine(backend, topic)
        assert (status, [fault["check"] for fault in faults]) == (1, ["instance ids"])
        assert f"2 running nodes named {name} have the instance_id worker-1" in faults[0]["problem"]
        assert 'instance_id="worker-1-2"' in faults[0]["advice"]
    with in_a_thread(backend, nodes((Slow, one), (Slow, other))):
        assert examine(backend, topic)[:2] == (0, [])


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, 1),
        ({"host": "there"}, 1),
        ({"ended": True}, 0),
        ({"status": NodeStatus.LOST}, 0),
        ({"name": "other"}, 0),
        ({"instance_id": "v"}, 0),
        ({"instance_id": None}, 0),
    ],
)
def test_an_identity_is_unique_among_the_running_workers_of_a_node(fields, found):
    one = announcement(host="h", instance_id="w")
    evidence = Evidence(BusSettings(environ={}), nodes=[one, msgspec.structs.replace(one, instance="j", **fields)])
    assert len(list(same_instance_id(evidence))) == found


@pytest.mark.parametrize(("ahead", "words"), [(30, "ahead of"), (-30, "behind")])
@pytest.mark.parametrize("kind", LIVE)
def test_a_clock_that_is_wrong(kind, ahead, words, topic, monkeypatch):
    """Publishing uses ``time.time_ns``, and receiving ``time.time``: only the node's clock is wrong."""
    backend, right = make_backend_alone(kind), time.time_ns
    with in_a_thread(backend, nodes((Slow, {"name": "cam", "publish_topic_name": topic}))):
        monkeypatch.setattr(time, "time_ns", lambda: right() + ahead * 10**9)
        status, faults, _ = examine(backend, topic)
    assert (status, [fault["check"] for fault in faults]) == (1, ["clocks"])
    assert re.match(rf"The clock of \S+ is (30|29)\.\d s {words} the clock of this machine", faults[0]["problem"])


def announcement(**fields):
    values = {"name": "n", "instance": "i", "type": "T", "device": "", "status": NodeStatus.RUNNING, "started_at": 0.0}
    return NodeInfo(**values | {"heartbeat_interval": 1.0} | fields)


def test_a_clock_is_judged_by_the_heartbeat_that_was_fastest():
    evidence = Evidence(BusSettings(environ={}))
    for host, late in {"near": [30.0, 0.01], "late": [2.1, 2.2], "ahead": [-0.11, 5.0]}.items():
        payload = msgspec.json.encode(announcement(host=host))
        for seconds in late:
            evidence.add(Message(NODES_TOPIC, payload, published_at=100.0, received_at=100.0 + seconds))
    for payload in (b"{", b"x" * 9000):
        evidence.add(Message(NODES_TOPIC, payload, published_at=1.0, received_at=100.0))
    assert [finding.problem.split()[3] for finding in clocks(evidence)] == ["late", "ahead"]


def program(*topics, **fields):
    made = {"name": "edge", "instance": "1", "host": "h", "process": 7, "started_at": 0.0, "heartbeat_interval": 10.0}
    return ProgramInfo(**{**made, "topics": topics, **fields})


def test_a_topic_that_a_program_publishes_is_no_misspelling():
    evidence = Evidence(BusSettings(environ={}))
    evidence.nodes = [announcement(name="cam", output="site.cams"), announcement(name="sink", inputs=("site.cam",))]
    assert len(list(unpublished(evidence))) == 1
    evidence.programs = [program(ProgramTopic(topic="site.cam", published=True))]
    assert not list(unpublished(evidence))
    evidence.programs = [program(ProgramTopic(topic="site.cam", published=True), ended=True)]
    assert len(list(unpublished(evidence))) == 1


def test_a_program_that_subscribes_to_a_misspelt_topic():
    evidence = Evidence(BusSettings(environ={}))
    evidence.nodes = [announcement(output="site.cams")]
    evidence.programs = [program(ProgramTopic(topic="site.cam", subscribed=True))]
    (finding,) = unpublished(evidence)
    assert finding.advice.startswith("If site.cam is misspelt, replace it by site.cams in the program edge[7];")


@pytest.mark.parametrize(("entry", "output"), [("site.ca*", "site.cam"), ("site.*", "site.c"), ("site.>", "site.c")])
def test_a_pattern_beside_a_topic_is_no_misspelling(entry, output):
    evidence = Evidence(BusSettings(environ={}), nodes=[announcement(output=output)])
    evidence.nodes.append(announcement(name="sink", inputs=(entry,)))
    assert not list(unpublished(evidence))
    assert not list(unpublished(dataclasses.replace(evidence, topics=(entry,))))


def test_the_ends_of_a_topic_are_also_those_of_patterns():
    evidence = Evidence(BusSettings(environ={}), nodes=[announcement(name="cam", output="site.cam")])
    evidence.programs = [
        program(ProgramTopic(topic="site.*", subscribed=True)),
        program(ProgramTopic(topic="other.*", subscribed=True), process=8),
        program(ProgramTopic(topic="site.*", subscribed=True), process=9, ended=True),
    ]
    assert ends(evidence, "site.cam") == (["cam"], ["edge[7]"])
    assert ends(evidence, "site.*") == (["cam"], ["edge[7]"])
    assert ends(evidence, "other.cam") == ([], ["edge[8]"])


def test_lost_programs_are_notes_and_have_clocks():
    evidence = Evidence(BusSettings(environ={}), topics=("site.*",))
    info = program(ProgramTopic(topic="site.cam", published=True))
    for offset in (0.0, -1.0):
        evidence.add(Message(NODES_TOPIC, msgspec.json.encode(info), published_at=100.0, received_at=100.0 + offset))
    evidence.programs = [
        info,
        msgspec.structs.replace(info, process=8, status=NodeStatus.LOST),
        program(process=9, status=NodeStatus.LOST),
    ]
    assert [finding.problem.split()[3] for finding in clocks(evidence)] == ["h"]
    (finding,) = lost_programs(evidence)
    assert (finding.problem, finding.fault) == ("The program edge[8] on h is LOST.", False)


@pytest.mark.parametrize(("output", "found"), [("site.a", 1), ("other.a", 0), (None, 0)])
def test_given_topics_limit_the_checks_to_their_nodes(output, found):
    evidence = Evidence(BusSettings(environ={}), topics=("site.*",))
    info = announcement(host="h", output=output, status=NodeStatus.ERROR)
    evidence.nodes = [info, msgspec.structs.replace(info, type="Other", status=NodeStatus.RUNNING)]
    evidence.nodes.append(msgspec.structs.replace(info, status=NodeStatus.RUNNING))
    evidence.add(Message(NODES_TOPIC, msgspec.json.encode(info), published_at=100.0, received_at=0.0))
    assert [len(list(check(evidence))) for check in (clocks, ended_badly, same_name)] == [found] * 3


@pytest.mark.parametrize(("published", "is_fault"), [(0, True), (7, False)])
def test_a_node_whose_code_raises(published, is_fault):
    metrics = NodeMetrics(errors=1200, undecodable=3, messages_out=published)
    evidence = Evidence(BusSettings(environ={}), nodes=[announcement(host="h", output="site.a", metrics=metrics)])
    errors, undecodable = failing(evidence)
    ending = ", and has published nothing" if is_fault else ""
    assert errors.problem == f"The node n on h has counted 1,200 errors since its start{ending}."
    assert (
        undecodable.problem == f"The node n on h has counted 3 inputs that it could not decode since its start{ending}."
    )
    assert [errors.fault, undecodable.fault] == [is_fault] * 2
    (silence,) = silent(dataclasses.replace(evidence, topics=("site.a",)))
    assert silence.advice.startswith("Read the log of n; ")


def test_nodes_of_one_name_that_differ_by_their_group_only():
    one = announcement(host="h", inputs=("site.a",), group_id="g")
    evidence = Evidence(BusSettings(environ={}), nodes=[one, msgspec.structs.replace(one, instance="j")])
    assert not list(same_name(evidence))
    evidence.nodes.append(msgspec.structs.replace(one, instance="k", group_id="other"))
    (finding,) = same_name(evidence)
    each = "T on h: site.a -> no output in group g; T on h: site.a -> no output in group other"
    assert finding.problem == f"2 different nodes are named n ({each})."


def test_nodes_that_ended_badly_or_in_order():
    statuses = {status.value: announcement(name=status.value, status=status) for status in NodeStatus}
    evidence = Evidence(BusSettings(environ={}), nodes=list(statuses.values()))
    assert {finding.problem.split()[2] for finding in ended_badly(evidence)} == {"LOST", "ERROR"}
    gone = msgspec.structs.replace(statuses["LOST"], name="x"), announcement(name="x", type="Other")
    assert not list(same_name(Evidence(BusSettings(environ={}), nodes=list(gone))))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ("cam", False),
        ("can", True),
        ("am", True),
        ("camx", True),
        ("xcam", True),
        ("CAM", True),
        ("cxn", False),
        ("", False),
    ],
)
def test_a_letter(other, expected):
    assert differs_by_a_letter("cam", other) is differs_by_a_letter(other, "cam") is expected
