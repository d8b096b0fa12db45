"""Run CPU-bound work in threads, so that one slow node does not block the other nodes of its process.

python examples/cpu_bound.py
"""

import asyncio
import hashlib

import msight_bus
from msight_bus import NodeConfig, ProcessingNode, SinkNode, SourceNode, off_loop, run_nodes

FRAMES = 20


def heavy(frame: bytes) -> bytes:
    """Compute for some milliseconds, like a detector. hashlib, like OpenCV, releases the GIL."""
    return hashlib.pbkdf2_hmac("sha256", frame, b"salt", 20_000)


class Camera(SourceNode):
    async def stream(self):
        await asyncio.sleep(
            0.5
        )  # wait until the other nodes have subscribed: Redis and NATS keep no messages for later subscribers
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
            print(f"{self.count} frames processed in threads")
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
