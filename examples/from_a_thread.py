"""Publish from a thread: a capture loop that blocks, as OpenCV's does, hands each frame to the bus.

python examples/from_a_thread.py
"""

import asyncio
import threading
import time

import msight_bus

FRAMES = 20


def capture(bus: msight_bus.Bus, loop: asyncio.AbstractEventLoop) -> None:
    """Stands for ``while True: ok, frame = camera.read()``. A bus belongs to its event loop, so the thread asks the loop."""
    for number in range(FRAMES):
        time.sleep(0.01)  # the camera blocks
        published = asyncio.run_coroutine_threadsafe(bus.publish("site.cam", b"frame %d" % number), loop)
        published.result()  # waits for the publish, and raises what it raises


async def main() -> None:
    async with msight_bus.connect() as bus, bus.subscribe("site.cam") as frames:
        thread = threading.Thread(target=capture, args=(bus, asyncio.get_running_loop()))
        thread.start()
        async for message in frames:
            print(f"received {message.payload.decode()}")
            if message.sequence == FRAMES:
                break
        await asyncio.to_thread(thread.join)


if __name__ == "__main__":
    msight_bus.run(main())
