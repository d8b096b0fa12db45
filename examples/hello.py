"""Hello: publish and receive one message, on the broker that MSIGHT_PUBSUB_BACKEND selects.

msight-bus up redis        # in another terminal
python examples/hello.py
"""

import msight_bus


async def main() -> None:
    async with msight_bus.connect() as bus, bus.subscribe("intersection.cam_ne") as frames:
        await bus.publish("intersection.cam_ne", b"hello", headers={"lens": "wide"})
        async for message in frames:
            print(
                f"{bus.backend}: {message.topic} {message.payload!r} {dict(message.headers)} sequence {message.sequence}"
            )
            break


msight_bus.run(main())
