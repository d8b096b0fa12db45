"""Hello: publish one message and receive it, on whichever broker MSIGHT_PUBSUB_BACKEND names.

msight-bus up redis        # in another terminal
python examples/hello.py
"""

import msight_bus


async def main() -> None:
    async with msight_bus.connect() as bus, bus.subscribe("intersection.cam_ne") as frames:
        await bus.publish("intersection.cam_ne", b"hello", headers={"lens": "wide"})
        async for message in frames:
            print(
                f"{bus.backend}: {message.topic} {message.payload!r} {dict(message.headers)} number {message.sequence}"
            )
            break


msight_bus.run(main())
