"""A unit test of a node without any broker: the memory backend keeps the same contract.

python -m pytest examples/unit_test.py
"""

import asyncio

import msight_bus
from msight_bus import NodeConfig, ProcessingNode


class Shout(ProcessingNode):
    """What is tested."""

    async def process(self, data):
        return data.upper()


def test_the_node_shouts():
    async def scenario():
        async with msight_bus.connect(backend="memory") as bus, bus.subscribe("out") as results:
            node = Shout(NodeConfig(name="shout", subscribe_topic_name="in", publish_topic_name="out"))
            running = asyncio.create_task(node.run(bus))
            while node.status != "RUNNING":
                await asyncio.sleep(0)
            await bus.publish("in", b"stop")
            assert (await anext(results)).payload == b"STOP"
            node.stop()
            await running

    asyncio.run(scenario())
