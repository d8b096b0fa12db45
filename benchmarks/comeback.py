"""``python -m benchmarks.comeback``: measure how soon a restarted member of a Kafka group receives its first message.

A member is started, receives a message, is killed (SIGKILL) and started again. The broker assigns the partitions to the new
member after the session timeout of the killed one, and to a node with the ``instance_id`` of the killed one at once. Every client
has a session timeout of 10 s, the bus's default; the default of confluent-kafka is 45 s.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from typing import Annotated, Any

import typer

import benchmarks.peers  # noqa: F401 - finds those that are installed
from msight_bus import NodeConfig, QueuePolicy, SinkNode, brokers, connect
from msight_bus.settings import BusSettings

TOPIC = "comeback"
SESSION_SECONDS = 10
_WITHIN = 90.0
_RATE = 50


async def _bus(servers: str, group: str) -> None:
    settings = BusSettings(backend="kafka", kafka={"servers": servers})
    async with (
        connect(settings) as bus,
        bus.subscribe(TOPIC, group_id=group, queue=QueuePolicy.block(100)) as messages,
    ):
        async for _ in messages:
            print(time.time(), flush=True)


class _Print(SinkNode):
    async def on_message(self, data: Any) -> None:
        print(time.time(), flush=True)


async def _node(servers: str, group: str, instance_id: str | None = None) -> None:
    config = NodeConfig(
        name="member", subscribe_topic_name=TOPIC, group_id=group, queue=QueuePolicy.block(100), instance_id=instance_id
    )
    async with connect(BusSettings(backend="kafka", kafka={"servers": servers})) as bus:
        await _Print(config).run(bus)


async def _node_with_instance_id(servers: str, group: str) -> None:
    await _node(servers, group, "worker-1")


async def _aiokafka(servers: str, group: str) -> None:
    from aiokafka import AIOKafkaConsumer  # noqa: PLC0415 - only in the process that needs it

    consumer = AIOKafkaConsumer(
        TOPIC,
        bootstrap_servers=servers,
        group_id=group,
        session_timeout_ms=SESSION_SECONDS * 1000,
        auto_offset_reset="latest",
    )
    await consumer.start()
    async for _ in consumer:
        print(time.time(), flush=True)


async def _confluent(servers: str, group: str) -> None:
    from confluent_kafka import Consumer  # noqa: PLC0415 - may not be installed

    options: dict[str, Any] = {
        "bootstrap.servers": servers,
        "group.id": group,
        "session.timeout.ms": SESSION_SECONDS * 1000,
        "auto.offset.reset": "latest",
    }
    consumer = Consumer(options)
    consumer.subscribe([TOPIC])
    while True:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            print(time.time(), flush=True)


_CLIENTS = {
    "bus": _bus,
    "node": _node,
    "node.instance_id": _node_with_instance_id,
    "aiokafka": _aiokafka,
    "confluent-kafka": _confluent,
}


def _first_message(client: str, servers: str, group: str) -> tuple[float, subprocess.Popen[str]]:
    """Start a member; return the seconds until its first message, and the process."""
    begun = time.time()
    command = [sys.executable, "-m", "benchmarks.comeback", "--member", json.dumps([client, servers, group])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    while time.time() - begun < _WITHIN:
        if line := process.stdout.readline():
            return float(line) - begun, process
        if process.poll() is not None:
            raise SystemExit(f"The member of {client} ended with exit code {process.returncode}.")
        time.sleep(0.005)
    process.kill()
    raise SystemExit(f"The member of {client} received no message within {_WITHIN:g} s.")


async def _publish(servers: str) -> None:
    async with connect(BusSettings(backend="kafka", kafka={"servers": servers})) as bus:
        while True:
            await bus.publish(TOPIC, b"x" * 128)
            await asyncio.sleep(1 / _RATE)


async def _measure(servers: str, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    publishing = asyncio.create_task(_publish(servers))
    await asyncio.sleep(2)
    for number in range(rounds):
        for client in _CLIENTS:
            seconds: dict[str, float] = {}
            for what in ("first start", "after a kill"):
                seconds[what], process = await asyncio.to_thread(_first_message, client, servers, f"{client}.{number}")
                await asyncio.sleep(0.5)  # the member sends heartbeats
                process.kill()
                process.wait()
            for what, taken in seconds.items():
                found.setdefault(f"{client}: {what}", []).append(round(taken, 3))
            typer.echo(f"round {number + 1} of {rounds}: {client}: {seconds}", err=True)
    publishing.cancel()
    with suppress(asyncio.CancelledError):
        await publishing
    return found


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 3, member: Annotated[str, typer.Option(hidden=True)] = ""
) -> None:
    """Measure how soon a restarted member of a Kafka group receives its first message."""
    if member:
        client, *rest = json.loads(member)
        asyncio.run(_CLIENTS[client](*rest))
        return
    with brokers.start("kafka") as broker:
        servers = next(value for name, value in broker.env.items() if name.endswith("SERVERS"))
        found = asyncio.run(_measure(servers, rounds))
    for row, seconds in found.items():
        typer.echo(f"{row:40} median {statistics.median(seconds):7.2f} s  of {seconds}")


if __name__ == "__main__":
    typer.run(main)
