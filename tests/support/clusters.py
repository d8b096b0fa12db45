"""Clusters of three real brokers, on loopback."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import redis

from msight_bus import brokers
from msight_bus.brokers.running import KindName
from tests.support.brokers import Backend, free_ports, skip_without
from tests.support.waiting import wait_until

SIZE = 3


@dataclass(frozen=True)
class Cluster(Backend):
    """A cluster whose nodes can be killed and restarted one by one."""

    nodes: list[brokers.RunningBroker]

    def node(self, port: int) -> brokers.RunningBroker:
        """Return the node that listens on ``port``."""
        return next(node for node in self.nodes if node.port == port)


@contextmanager
def redis_cluster() -> Iterator[Cluster]:
    """Start three masters without replicas, which suffice for pub/sub, because each node forwards every message."""
    ways = free_ports(SIZE)
    configs = [
        ["cluster-enabled yes", f"cluster-port {way}", "cluster-node-timeout 1000", "cluster-require-full-coverage no"]
        for way in ways
    ]
    with _started("redis", configs) as nodes, ExitStack() as stack:
        clients = [stack.enter_context(redis.Redis(port=node.port)) for node in nodes]
        for number, client in enumerate(clients):
            first, after = 16384 * number // SIZE, 16384 * (number + 1) // SIZE
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, after - 1)
        again = 0.0

        def connected() -> bool:
            nonlocal again
            if time.monotonic() >= again:  # a node forgets a meeting that is not over within 1 s
                for node, way in zip(nodes, ways, strict=True):
                    clients[0].execute_command("CLUSTER", "MEET", node.host, node.port, way)
                again = time.monotonic() + 2.0
            return all(client.execute_command("CLUSTER", "NODES").count(b" connected ") == SIZE for client in clients)

        wait_until(connected, within=40.0)
        for client in clients:
            wait_until(lambda client=client: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
        addresses = ",".join(f"{node.host}:{node.port}" for node in nodes)
        variables = {"USE_CLUSTER": "true", "CLUSTER_NODES": addresses}
        env = {f"MSIGHT_REDIS_MESSAGE_BROKER_{name}": value for name, value in variables.items()}
        yield Cluster("redis", env, nodes)


@contextmanager
def nats_cluster(*lines: str) -> Iterator[Cluster]:
    """Start three servers with routes between all of them; ``lines`` are appended to each configuration."""
    ways = free_ports(SIZE)
    routes = ", ".join(f"nats://127.0.0.1:{way}" for way in ways)
    configs = [[f'cluster {{ name: three, listen: "127.0.0.1:{way}", routes: [{routes}] }}', *lines] for way in ways]
    with _started("nats", configs) as nodes:
        for node in nodes:
            wait_until(lambda node=node: known_to(node.port) == {node.port for node in nodes})
        yield _together("nats", nodes, "MSIGHT_NATS_SERVERS")


@contextmanager
def kafka_cluster(*, session_seconds: int = 3) -> Iterator[Cluster]:
    """Start three nodes, each a broker and a controller, with at least two in-sync replicas of acknowledged messages.

    Args:
        session_seconds: seconds without a heartbeat after which a broker loses its leaderships; Apache Kafka's default is 9.
    """
    ways = free_ports(SIZE)
    voters = ",".join(f"{number}@127.0.0.1:{way}" for number, way in enumerate(ways, 1))
    common = [
        f"controller.quorum.voters={voters}",
        "default.replication.factor=3",
        "min.insync.replicas=2",
        "offsets.topic.replication.factor=3",
        "transaction.state.log.replication.factor=3",
        "transaction.state.log.min.isr=2",
        f"broker.session.timeout.ms={session_seconds * 1000}",
        "group.min.session.timeout.ms=500",
    ]
    configs = [
        [*common, f"node.id={number}", f"listeners=CLIENT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{way}"]
        for number, way in enumerate(ways, 1)
    ]
    with _started("kafka", configs, ("--cluster-id=c3RyZWFtcyBvZiBzZW5zbw",)) as nodes:
        yield _together("kafka", nodes, "MSIGHT_KAFKA_SERVERS")


def _together(kind: KindName, nodes: list[brokers.RunningBroker], variable: str) -> Cluster:
    return Cluster(kind, {variable: ",".join(node.env[variable] for node in nodes)}, nodes)


def known_to(port: int) -> set[int]:
    """Return the ports of all servers that a server announces to its clients."""
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as lines:
        info = json.loads(lines.readline().partition(b" ")[2])
    return {int(url.rpartition(":")[2]) for url in info.get("connect_urls", [])}


@contextmanager
def _started(
    kind: KindName, configs: list[list[str]], arguments: tuple[str, ...] = ()
) -> Iterator[list[brokers.RunningBroker]]:
    """Start one broker per configuration, concurrently, because some answer only when the others run."""
    with ExitStack() as stack, ThreadPoolExecutor(len(configs)) as pool:

        def start(config: list[str]) -> brokers.RunningBroker:
            return stack.enter_context(brokers.start(kind, config=config, arguments=arguments, deadline=50))

        with skip_without(kind):
            nodes = list(pool.map(start, configs))
        yield nodes
