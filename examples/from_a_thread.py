"""Publish from a thread: a blocking capture loop, such as OpenCV's, publishes each frame.

python examples/from_a_thread.py
"""

import asyncio
import threading
import time

import msight_bus

FRAMES = 20


def capture(bus: msight_bus.Bus, loop: asyncio.AbstractEventLoop) -> None:
    """Simulate ``while True: ok, frame = camera.read()``. A bus belongs to its event loop, on which the thread publishes."""
    for number in range(FRAMES):
        time.sleep(0.01)  # camera.read() blocks
        published = asyncio.run_coroutine_threadsafe(bus.publish("site.cam", b"frame %d" % number), loop)
        published.result()  # wait for the publish; raises its error


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
