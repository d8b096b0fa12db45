"""A worker with an ``instance_id``: on Kafka a static member of its group, elsewhere an identity for registries."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import asynccontextmanager

import pytest
from aiokafka.admin import NewPartitions

from msight_bus import ClosedError
from msight_bus.nodes import NodeConfig
from tests.support.kafka_admin import administering, make
from tests.support.nodes import DEADLINE, Collect, running, start
from tests.support.programs import environment, program

SESSION = {"MSIGHT_KAFKA_SESSION_TIMEOUT": "120"}
"""Longer than a test: a test fails if a worker waits until a session expires."""

PROGRAM = """
import sys
from msight_bus import NodeConfig, SinkNode, run_nodes

class Print(SinkNode):
    async def on_message(self, data):
        print(data.decode(), flush=True)

name, topic = sys.argv[1:]
run_nodes(Print(NodeConfig(name=name, subscribe_topic_name=topic, instance_id="worker-1", start="earliest")))
"""


@pytest.fixture
def name(topic):
    """A node's name that no other test uses, because it names the group."""
    return topic.replace(".", "-")


def worker(name, topics, instance_id="worker-1", **fields):
    return Collect(NodeConfig(name=name, subscribe_topic_name=topics, instance_id=instance_id, **fields))


@asynccontextmanager
async def running_program(folder, kafka, name, topic, **settings):
    """Run `PROGRAM` until it has received a first message."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        program(folder, PROGRAM),
        name,
        topic,
        env=environment(**{**kafka.env, "MSIGHT_PUBSUB_BACKEND": "kafka", **settings}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with kafka.connect() as bus:
            await bus.publish(topic, b"0")
        assert await process.stdout.readline() == b"0\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def publish(kafka, topic, prefix=""):
    """Publish messages with 40 keys, which reach each of 4 partitions; return the payloads."""
    payloads = [f"{prefix}{number}".encode() for number in range(40)]
    async with kafka.connect() as bus:  # which looks up the partitions
        for number, payload in enumerate(payloads):
            await bus.publish(topic, payload, key=str(number))
    return set(payloads)


async def shares(expected, *workers):
    """Wait until the workers have received these payloads; return those that each has received."""
    async with asyncio.timeout(DEADLINE):
        while not set().union(*(each.items for each in workers)) >= expected:
            await asyncio.sleep(0.01)
    return [expected.intersection(each.items) for each in workers]


# -- a second one


async def test_a_second_worker_of_one_identity_ends_the_first_on_kafka_and_runs_beside_it_elsewhere(
    backend, topic, name
):
    first, second = worker(name, topic), worker(name, topic)
    async with backend.connect() as bus, asyncio.timeout(DEADLINE * 2):
        task = await start(bus, first)
        await bus.publish(topic, b"first")
        await first.until(1)
        async with running(bus, second):
            if bus.capabilities.persistence:
                with pytest.raises(ClosedError, match="'worker-1'"):
                    await task
                assert first.status == "ERROR"
            await bus.publish(topic, b"last")
            await shares({b"last"}, second)
            if not bus.capabilities.persistence:
                assert await first.until(2) == [b"first", b"last"]
                first.stop()
                await task


async def test_a_program_whose_worker_is_fenced_ends_with_status_1_and_says_why(kafka, topic, name, tmp_path):
    second = worker(name, topic)
    async with kafka.connect() as bus, running_program(tmp_path, kafka, name, topic) as process:
        process.send_signal(signal.SIGSTOP)
        async with running(bus, second):
            process.send_signal(signal.SIGCONT)
            _, errors = await process.communicate()
            assert process.returncode == 1
            assert "ClosedError" in (last := errors.decode().splitlines()[-1])
            assert "'worker-1'" in last
            assert "Traceback" not in errors.decode()
            await bus.publish(topic, b"1")
            await shares({b"1"}, second)


# -- one that comes back


async def test_a_worker_that_was_killed_gets_its_partitions_back_within_its_session(kafka, topic, name, tmp_path):
    async with running_program(tmp_path, kafka, name, topic, **SESSION) as process:
        process.kill()
        await process.wait()
    again = worker(name, topic)
    async with kafka.connect(**SESSION) as bus, running(bus, again):
        await bus.publish(topic, b"1")
        await shares({b"1"}, again)


async def test_a_worker_that_was_stopped_gets_its_partitions_back_and_the_others_keep_theirs(kafka, topic, name):
    await make(kafka, topic, 4)
    first, again, other = worker(name, topic), worker(name, topic), worker(name, topic, "worker-2")
    async with kafka.connect(**SESSION) as bus, running(bus, other):
        async with running(bus, first):
            before = await shares(await publish(kafka, topic, "a"), first, other)
        expected = await publish(kafka, topic, "b")
        async with running(bus, again):
            after = await shares(expected, again, other)
    assert all(before)
    assert [{payload[1:] for payload in share} for share in after] == [
        {payload[1:] for payload in share} for share in before
    ]


@pytest.mark.parametrize(
    ("before", "after", "identities"),
    [("a", "ab", ["worker-1"]), ("ab", "b", ["worker-1"]), ("a", "b", ["worker-1", "worker-2"])],
    ids=["added", "removed", "replaced in a group"],
)
async def test_workers_that_come_back_with_other_topics(kafka, name, before, after, identities):
    """The coordinator gives a static member that comes back what it had, whatever it subscribes to now."""
    topics = {letter: f"{name}.{letter}" for letter in "ab"}
    for each in topics.values():
        await make(kafka, each, 4)
    old = [worker(name, [topics[letter] for letter in before], identity) for identity in identities]
    new = [worker(name, [topics[letter] for letter in after], identity) for identity in identities]
    async with kafka.connect(**SESSION) as bus, asyncio.timeout(DEADLINE * 2):
        tasks = [await start(bus, each) for each in old]
        for at in range(len(identities)):
            old[at].stop()
            await tasks[at]
            tasks[at] = await start(bus, new[at])
        published = {letter: await publish(kafka, topics[letter], letter) for letter in "ab"}
        await shares(set().union(*(published[letter] for letter in after)), *new)
        for each in new:
            each.stop()
        await asyncio.gather(*tasks)
    assert {item[:1].decode() for each in new for item in each.items} == set(after)


@pytest.mark.parametrize("away", [True, False], ids=["while away", "later"])
async def test_partitions_that_are_added_when_the_leader_of_a_group_has_come_back(kafka, topic, name, away):
    async def add_partitions():
        async with administering(kafka) as admin:
            await admin.create_partitions({topic: NewPartitions(4)})

    await make(kafka, topic, 1)
    again = worker(name, topic)
    async with kafka.connect(**SESSION) as bus:
        async with running(bus, worker(name, topic)):
            pass
        if away:
            await add_partitions()
        async with running(bus, again):
            if not away:
                await add_partitions()
            await shares(await publish(kafka, topic), again)
