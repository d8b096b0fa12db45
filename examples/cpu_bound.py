"""CPU-bound work off the loop, so that one slow node does not stall the others in its process.

python examples/cpu_bound.py
"""

import asyncio
import hashlib

import msight_bus
from msight_bus import NodeConfig, ProcessingNode, SinkNode, SourceNode, off_loop, run_nodes

FRAMES = 20


def heavy(frame: bytes) -> bytes:
    """Something that computes for a while, as a detector does. hashlib and OpenCV let other threads run meanwhile."""
    return hashlib.pbkdf2_hmac("sha256", frame, b"salt", 20_000)


class Camera(SourceNode):
    async def stream(self):
        await asyncio.sleep(0.5)  # the others subscribe; a live stream keeps nothing for those who are late
        for i in range(FRAMES):
            yield b"frame %d" % i


class Detector(ProcessingNode):
    async def process(self, data):
        return await off_loop(heavy, data)


class Counter(SinkNode):
    count = 0

    async def on_message(self, data):
        self.count += 1
        if self.count == FRAMES:
            print(f"{self.count} frames were computed off the loop")
            for node in nodes:
                node.stop()


camera = Camera(NodeConfig(name="camera", publish_topic_name="site.cam"))
detector = Detector(
    NodeConfig(name="detector", subscribe_topic_name="site.cam", publish_topic_name="site.hashes", concurrency=4)
)
counter = Counter(NodeConfig(name="counter", subscribe_topic_name="site.hashes"))
nodes = (camera, detector, counter)

if __name__ == "__main__":
    print(f"msight_bus {msight_bus.__version__}")
    run_nodes(*nodes)
