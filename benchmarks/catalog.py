"""What is compared on each backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msight_bus.bench.candidates import Side

BACKENDS = ("redis", "nats", "kafka")
CEILING, CLIENT, FRAMEWORK, BUS = "ceiling", "client", "FastStream", "bus"
PLAIN = "plain ceiling"
"""Parses each message by itself, whatever its size; `CEILING` knows the size and takes many at once."""

AGAIN = "ceiling again"
"""The ceiling once more: what the same thing against itself gives is the A/A band."""

_BUS_SUBSCRIBER = Side("msight_bus.bench.bus_sides:BusSubscriber")
_BUS_PUBLISHER = Side("msight_bus.bench.bus_sides:BusPublisher")


@dataclass(frozen=True, slots=True)
class Catalog:
    """The candidates of one backend by name.

    Attributes:
        subscribers: fed by ``feeder``, or from a log.
        publishers: drained by ``sink``, or into a log.
        latency: publisher and subscriber of one kind.
        titles: what the names mean here.
        feeder: writes bytes that were made before the run; ``None`` where the broker keeps messages.
        sink: counts what publishers send; ``None`` where the broker keeps messages.
    """

    subscribers: Mapping[str, Side]
    publishers: Mapping[str, Side]
    latency: Mapping[str, tuple[Side, Side]]
    titles: Mapping[str, str]
    feeder: Side | None = None
    sink: Side | None = None


def catalog(backend: str) -> Catalog:
    """The candidates of ``backend``."""
    return _kafka() if backend == "kafka" else _live(backend)


def _live(backend: str) -> Catalog:
    ceiling, peer = f"benchmarks.ceilings.{backend}:", f"benchmarks.peers.{backend}:"
    framework = "benchmarks.peers.faststream:"
    raw_in, raw_out = Side(ceiling + "RawSubscriber"), Side(ceiling + "RawPublisher")
    if backend == "redis":
        own_in, own_out, prefix = Side(peer + "ListenSubscriber"), Side(peer + "PipelinePublisher"), 32
        client = "redis-py: PubSub.listen(); pipelines of 64; publish() for latency"
    else:
        own_in, own_out, prefix = Side(peer + "IterSubscriber"), Side(peer + "HeaderPublisher"), 0
        client = "nats-py: async for; publish() with the same header"
    name = backend.capitalize()
    return Catalog(
        subscribers={
            CEILING: raw_in,
            PLAIN: Side(raw_in.path, {"runs": False}),
            CLIENT: own_in,
            FRAMEWORK: Side(framework + "HandlerSubscriber", {"backend": backend, "prefix": prefix}),
            BUS: _BUS_SUBSCRIBER,
        },
        publishers={CEILING: raw_out, CLIENT: own_out, BUS: _BUS_PUBLISHER},
        latency={
            CEILING: (raw_out, raw_in),
            CLIENT: (own_out, own_in),
            FRAMEWORK: (
                Side(framework + "BrokerPublisher", {"backend": backend}),
                Side(framework + "HandlerSubscriber", {"backend": backend}),
            ),
            BUS: (_BUS_PUBLISHER, _BUS_SUBSCRIBER),
            AGAIN: (raw_out, raw_in),
        },
        titles={
            CEILING: "raw protocol behind an async iterator, sizes known beforehand; coalescing writer",
            PLAIN: "the same, each message parsed by itself",
            CLIENT: client,
            **_COMMON,
        },
        feeder=Side(f"benchmarks.feeders:{name}Feeder"),
        sink=Side(f"benchmarks.sinks:{name}Sink"),
    )


def _kafka() -> Catalog:
    ceiling, peer, framework = "benchmarks.ceilings.kafka:", "benchmarks.peers.kafka:", "benchmarks.peers.faststream:"
    many, each = Side(ceiling + "GetManySubscriber"), Side(peer + "IterSubscriber")
    handler = Side(framework + "HandlerSubscriber", {"backend": "kafka"})
    tuned = (Side(peer + "SendPublisher", {"batch_bytes": 256 * 1024}), many)
    return Catalog(
        subscribers={CEILING: many, CLIENT: each, FRAMEWORK: handler, BUS: _BUS_SUBSCRIBER},
        publishers={
            CEILING: Side(ceiling + "HandBatchPublisher"),
            CLIENT: Side(peer + "SendPublisher"),
            BUS: _BUS_PUBLISHER,
        },
        latency={
            CEILING: tuned,
            CLIENT: (Side(peer + "SendPublisher"), each),
            FRAMEWORK: (Side(framework + "BrokerPublisher", {"backend": "kafka"}), handler),
            BUS: (_BUS_PUBLISHER, _BUS_SUBSCRIBER),
            AGAIN: tuned,
        },
        titles={
            CEILING: "aiokafka: getmany(); batches filled by hand; latency: send() and getmany(), tuned as the bus",
            CLIENT: "aiokafka: async for; send() and flush(); latency: untuned",
            **_COMMON,
        },
    )


_COMMON = {
    FRAMEWORK: "FastStream: a handler of bytes; broker.publish()",
    BUS: "async for message in subscription; publisher.send()",
    AGAIN: "the ceiling a second time",
}
