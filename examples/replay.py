"""Replay: read recorded messages from the beginning, or from a time. Needs Kafka, which keeps a log.

msight-bus up kafka        # in another terminal
MSIGHT_PUBSUB_BACKEND=kafka python examples/replay.py
"""

from datetime import UTC, datetime

import msight_bus


async def main() -> None:
    async with msight_bus.connect() as bus:
        for i in range(5):
            await bus.publish("site.recording", b"frame %d" % i)
        start = datetime.now(UTC)
        await bus.publish("site.recording", b"frame 5")

        async with bus.subscribe("site.recording", start="earliest") as messages:
            async for message in messages:
                print("from the beginning:", message.payload.decode(), "at", message.position)
                if message.payload == b"frame 5":
                    break

        async with bus.subscribe("site.recording", start=start) as messages:
            print("from a time on:", (await anext(messages)).payload.decode())


try:
    msight_bus.run(main())
except msight_bus.UnsupportedError as error:
    print(error)
