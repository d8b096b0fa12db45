"""Test a node without a broker: on the memory backend, and in a simulation whose connections fail.

python -m pytest examples/unit_test.py
"""

import asyncio

import msight_bus
from msight_bus import NodeConfig, ProcessingNode


class Shout(ProcessingNode):
    """The node under test."""

    async def process(self, data):
        return data.upper()


async def started(bus):
    node = Shout(NodeConfig(name="shout", subscribe_topic_name="in", publish_topic_name="out"))
    running = asyncio.create_task(node.run(bus))
    while node.status != "RUNNING":
        await asyncio.sleep(0)
    return node, running


def test_the_node_shouts():
    async def scenario():
        async with msight_bus.connect(backend="memory") as bus, bus.subscribe("out") as results:
            node, running = await started(bus)
            await bus.publish("in", b"stop")
            assert (await anext(results)).payload == b"STOP"
            node.stop()
            await running

    asyncio.run(scenario())


def test_the_node_continues_after_an_outage(msight_simulation):
    async def scenario():
        async with msight_simulation.connect() as bus, bus.subscribe("out") as results:
            node, running = await started(bus)
            msight_simulation.inject("drop", topic="in")
            for word in (b"lost", b"before"):
                await bus.publish("in", word)
            assert (await anext(results)).payload == b"BEFORE"
            msight_simulation.disconnect()
            await asyncio.sleep(3600)  # one hour of virtual time
            msight_simulation.reconnect()
            await asyncio.sleep(10)
            await bus.publish("in", b"after")
            assert (await anext(results)).payload == b"AFTER"
            node.stop()
            await running

    msight_simulation.run(scenario(), within=7200)
