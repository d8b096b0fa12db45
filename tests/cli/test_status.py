"""``status``: the broker, the nodes and their totals."""

from __future__ import annotations

import asyncio
import json
import re
from unittest.mock import AsyncMock

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import RecordsToDelete

from msight_bus.announcements import NodeInfo, NodeMetrics, NodeStatus, ProgramInfo
from msight_bus.backends.kafka.client import client_options
from msight_bus.cli.status import Status
from msight_bus.doctor.checks import topics_of, version
from msight_bus.doctor.evidence import Evidence, GroupLag
from msight_bus.doctor.kafka_groups import Group, _lags
from msight_bus.nodes import NodeConfig
from msight_bus.topics import NODES_TOPIC
from tests.support.brokers import GROUP, make_backend, make_backend_alone
from tests.support.commands import command, in_a_thread, started
from tests.support.examining import examine
from tests.support.kafka_admin import administering, make
from tests.support.librdkafka import PROTOCOLS, Member, produce
from tests.support.nodes import Collect, running
from tests.support.rig import own_broker
from tests.support.servers import limited, start
from tests.support.waiting import wait_until


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
def test_the_broker_and_its_nodes(kind, topic):
    backend = make_backend_alone(kind)

    async def work(bus, ready, stop):
        config = NodeConfig(name="sink", subscribe_topic_name=topic, heartbeat_update_interval=0.2)
        async with running(bus, Collect(config)):
            ready()
            while not stop.is_set():
                await asyncio.sleep(0.01)

    with in_a_thread(backend, work):
        result = command(backend, "status", "--seconds", "1", "--json")
    fields = json.loads(result.stdout)
    assert (fields["backend"], fields["address"]) == (kind, backend.settings().address)
    assert (fields["version"] is None) == (kind == "kafka")
    assert fields["ping_ms"] > 0
    assert fields["nodes"]["RUNNING"] >= 1
    assert result.exit_code == bool(fields["faults"])


def test_totals_and_a_node_with_an_error():
    metrics = NodeMetrics(missing=1, dropped=20, errors=300, undecodable=4000, queued=5)
    common = {"device": "", "type": "T", "started_at": 0.0, "heartbeat_interval": 5.0, "metrics": metrics}
    well = NodeInfo(name="well", instance="a", status=NodeStatus.RUNNING, **common)
    ill = NodeInfo(name="ill", instance="b", host="far", status=NodeStatus.ERROR, **common)
    common = {"name": "edge", "host": "h", "process": 7, "started_at": 0.0, "heartbeat_interval": 5.0, "topics": ()}
    programs = [
        ProgramInfo(instance="c", **common),
        ProgramInfo(instance="d", status=NodeStatus.STOPPED, ended=True, **common),
    ]

    async def announce(bus, ready, stop):
        ready()
        while not stop.is_set():
            for info in (*nodes, *programs):
                await bus.core.publish(NODES_TOPIC, msgspec.json.encode(info))
            await asyncio.sleep(0.05)

    with start("nats") as broker:
        backend = make_backend("nats", broker)
        nodes = [well]
        with in_a_thread(backend, announce):
            assert command(backend, "status", "--seconds", "0.5").exit_code == 0
        nodes.append(ill)
        with in_a_thread(backend, announce):
            result = command(backend, "status", "--seconds", "0.5")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1:] == [
        "Nodes: 1 ERROR, 1 RUNNING",
        "Programs: 1 RUNNING, 1 STOPPED",
        "Nodes since their start: 2 messages lost, 40 dropped, 8,600 errors; queued now: 10",
        "The node ill on far is ERROR.",
    ]


@pytest.mark.parametrize("kind", ["redis", "nats"])
def test_a_user_without_permission_for_announcements(kind):
    with limited(kind) as backend:
        text = command(backend, "status", "--seconds", "0.1")
        fields = command(backend, "status", "--seconds", "0.1", "--json")
    assert (text.exit_code, fields.exit_code) == (1, 1)
    assert text.stdout.splitlines()[1:] == ["Nodes: unknown (not permitted)", "Programs: unknown (not permitted)"]
    unknown = {name for name, value in json.loads(fields.stdout).items() if value is None}
    assert unknown >= {"nodes", "programs", "missing", "dropped", "queued", "errors"}


@pytest.mark.parametrize("kind", ["redis", "nats"])
def test_a_broker_that_goes_away_is_an_error(kind):
    with own_broker(kind) as (broker, backend):
        limits = {"MSIGHT_CONNECT_TIMEOUT": "1", "MSIGHT_PONG_TIMEOUT": "1"}
        with started("msight-bus status --seconds 2", backend, **limits) as process:
            while "Listening" not in (line := process.stderr.readline()):
                assert line, "the command ended"
            broker.kill()
            output, errors = process.communicate(timeout=40)
    assert (process.returncode, output) == (3, ""), errors


def lags(kafka, group):
    """Return topic, lag, partitions without a committed offset and members of each line of a group."""
    result = command(kafka, "status", "--seconds", "0.1", "--json")
    found = json.loads(result.stdout)["groups"]
    return [(one["topic"], one["lag"], one["uncommitted"], one["members"]) for one in found if one["group"] == group]


def test_the_lag_of_a_group_and_reading_it_changes_nothing(kafka, topic):
    group = f"{GROUP}.{topic}"

    async def work(bus, ready, stop):
        async with bus.subscribe(topic, group_id=group, start="earliest") as messages:
            async for message in messages:
                if int(message.payload) == 2:
                    break
            ready()
            while not stop.is_set():
                await asyncio.sleep(0.01)

    asyncio.run(make(kafka, topic))
    records = [{"value": str(number)} for number in range(5)]
    asyncio.run(produce(kafka, topic, *records))
    with in_a_thread(kafka, work):
        wait_until(lambda: lags(kafka, group) == [(topic, 3, 0, 1)])  # committed at intervals
    wait_until(lambda: lags(kafka, group) == [(topic, 3, 0, 0)])  # the member has left
    asyncio.run(produce(kafka, topic, *records))
    text = command(kafka, "status", "--seconds", "0.1").stdout
    assert re.search(rf"^{group} +{topic} +8 +0 +0$", text, re.MULTILINE)
    assert lags(kafka, group) == [(topic, 8, 0, 0)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_lag_of_a_group_of_another_make(kafka, topic, protocol):
    group, seen = f"{GROUP}.{topic}", []
    asyncio.run(make(kafka, topic, partitions=2))
    asyncio.run(produce(kafka, topic, *[{"value": b"x", "partition": 1}] * 5))
    options = {**PROTOCOLS[protocol], "auto.offset.reset": "earliest", "auto.commit.interval.ms": 3_600_000}
    member = Member(kafka, topic, group, seen.append, **options)
    member.start()
    try:
        wait_until(lambda: len(seen) == 5)
        wait_until(lambda: lags(kafka, group) == [(topic, None, 2, 1)])
    finally:
        asyncio.run(member.stop())  # commits what it has received
    wait_until(lambda: lags(kafka, group) == [(topic, 0, 0, 0)])
    asyncio.run(produce(kafka, topic, *[{"value": b"x", "partition": 1}] * 3))
    assert lags(kafka, group) == [(topic, 3, 0, 0)]


async def commit(kafka, topic, group, offset):
    place = TopicPartition(topic, 0)
    async with AIOKafkaConsumer(**client_options(kafka.settings()), group_id=group, enable_auto_commit=False) as other:
        other.assign([place])
        await other.commit({place: offset})


def test_a_group_whose_topic_was_deleted_is_listed(kafka, topic):
    group = f"{GROUP}.{topic}"

    async def delete():
        async with administering(kafka) as admin:
            await admin.delete_topics([topic])

    asyncio.run(make(kafka, topic))
    asyncio.run(commit(kafka, topic, group, 0))
    assert lags(kafka, group) == [(topic, 0, 0, 0)]
    asyncio.run(delete())
    wait_until(lambda: lags(kafka, group) in ([(topic, None, 0, 0)], [("", None, 0, 0)]))
    result = command(kafka, "status", "--seconds", "0.1", "--json")
    (one,) = [one for one in json.loads(result.stdout)["groups"] if one["group"] == group]
    assert one["deleted"] == (one["topic"] == topic)


@pytest.mark.parametrize(
    ("topic", "deleted", "shown"),
    [("cam", True, "cam (deleted)"), ("", False, "none (deleted, or nothing committed)"), ("cam", False, "cam")],
)
async def test_a_deleted_topic_is_marked(status_of, capsys, topic, deleted, shown):
    status = await status_of([GroupLag("g", topic, None, 0, 0, deleted=deleted)])
    status.show(as_json=False)
    assert re.search(rf"^g +{re.escape(shown)} +\? +0 +0$", capsys.readouterr().out, re.MULTILINE)


def test_deleted_records_are_no_lag(kafka, topic):
    group = f"{GROUP}.{topic}"

    async def delete():
        async with administering(kafka) as admin:
            await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=6)})

    asyncio.run(make(kafka, topic))
    asyncio.run(produce(kafka, topic, *[{"value": b"x"}] * 10))
    asyncio.run(commit(kafka, topic, group, 2))
    assert lags(kafka, group) == [(topic, 8, 0, 0)]
    asyncio.run(delete())
    assert lags(kafka, group) == [(topic, 4, 0, 0)]
    asyncio.run(commit(kafka, topic, group, 7))
    assert lags(kafka, group) == [(topic, 3, 0, 0)]


def test_a_committed_offset_after_the_end_is_reported(kafka, topic):
    group = f"{GROUP}.{topic}"
    asyncio.run(make(kafka, topic))
    asyncio.run(produce(kafka, topic, *[{"value": b"x"}] * 4))
    asyncio.run(commit(kafka, topic, group, 4))
    assert "committed offsets" not in examine(kafka, topic)[1]
    asyncio.run(commit(kafka, topic, group, 10))
    status, found = examine(kafka, topic)
    problem = found["committed offsets"]["problem"]
    assert (status, f"{group} has committed offset 10 of {topic}, partition 0, after its end 4:" in problem) == (
        1,
        True,
    )
    said = command(kafka, "status", "--seconds", "0.1")
    assert "Committed offsets after the end of a partition: " in said.stderr
    listed = json.loads(command(kafka, "status", "--seconds", "0.1", "--json").stdout)["groups"]
    one = next(one for one in listed if one["group"] == group)
    assert (one["lag"], one["beyond"]) == (0, {"0": [10, 4]})
    asyncio.run(commit(kafka, topic, group, 0))  # as the advice does
    assert "committed offsets" not in examine(kafka, topic)[1]


@pytest.fixture
def status_of(memory, monkeypatch):
    """Read the status of a broker, which reports these groups, and that others were not read."""

    async def read(groups, others=0):
        for name, answer in {"version": "1", "lags": (groups, others)}.items():
            monkeypatch.setattr(f"msight_bus.cli.status.{name}", AsyncMock(return_value=answer))
        status = Status(Evidence(memory.settings()))
        await status.read(0.01)
        return status

    return read


def test_the_lag_of_each_topic_of_a_group():
    a0, a1, b0, gone = (TopicPartition(topic, number) for topic, number in (("a", 0), ("a", 1), ("b", 0), ("gone", 0)))
    group = Group("g", 0, True, [{a0, gone}, {a1}, set()])
    ends = {a0: 10, a1: 20, b0: 3, TopicPartition("other", 0): 99}
    assert list(_lags(group, {a0: 4, b0: 5, gone: 1}, {}, ends)) == [
        GroupLag("g", "a", lag=6, uncommitted=1, members=2),
        GroupLag("g", "b", lag=0, uncommitted=0, members=0, beyond={0: (5, 3)}),
    ]
    assert list(_lags(group, {a0: 4}, {a0: 7}, ends)) == [GroupLag("g", "a", lag=3, uncommitted=1, members=2)]
    assert GroupLag("g", "gone", None, 0, 1, deleted=True) in _lags(group, {gone: 1}, {}, ends, {"gone"})
    assert list(_lags(group, {}, {}, ends)) == [GroupLag("g", "a", lag=None, uncommitted=2, members=2)]


@pytest.mark.parametrize(
    ("count", "others", "left_out"),
    [
        (20, 0, None),
        (21, 0, "1 more line (see --json)"),
        (1020, 7, "1,000 more lines (see --json), 7 groups (more than 1,000, or the user may not describe them)"),
        (1, 1, "1 group (more than 1,000, or the user may not describe them)"),
    ],
)
async def test_the_groups_furthest_behind_are_shown_first_and_the_number_of_the_others(
    status_of, capsys, count, others, left_out
):
    groups = [GroupLag(f"g{number:04}", "t", number, 0, 1) for number in range(1, count)]
    groups.insert(len(groups) // 2, GroupLag("unknown", "t", None, 1, 1))
    status = await status_of(groups, others)
    capsys.readouterr()
    status.show(as_json=False)
    out, err = capsys.readouterr()
    shown = [line.split()[0] for line in out.splitlines() if re.match("g[0-9]|unknown", line)]
    expected = [*[f"g{number:04}" for number in range(count - 1, 0, -1)], "unknown"]
    assert shown == expected[:20]
    assert err.splitlines() == ([f"Not shown: {left_out}."] if left_out else [])
    status.show(as_json=True)
    fields = json.loads(capsys.readouterr().out)
    assert ([one["group"] for one in fields["groups"]], fields["more_groups"]) == (expected, others)


async def test_groups_that_are_equally_far_behind_are_shown_by_name(status_of):
    named = ("b", "t", 5), ("c", "t", 0), ("a", "u", 5), ("b", "s", 5), ("a", "t", None), ("d", "t", 10)
    status = await status_of([GroupLag(group, topic, lag, 0, 0) for group, topic, lag in named])
    assert [one.group + one.topic for one in status.lags] == ["dt", "au", "bs", "bt", "at", "ct"]


async def test_the_memory_backend_has_no_version_and_lists_no_topics(memory):
    assert await version(Evidence(memory.settings())) is None
    assert await topics_of(memory.settings()) == []


def test_a_broker_without_groups(nats):
    result = command(nats, "status", "--seconds", "0.1", "--json")
    assert json.loads(result.stdout)["groups"] is None


def test_no_broker(nats):
    assert command(nats, "status", MSIGHT_NATS_SERVERS="nats://127.0.0.1:1").exit_code == 3
    assert command(nats, "status", "--seconds", "0").exit_code == 2
