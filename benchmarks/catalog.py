"""The candidates that are compared on each backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from msight_bus.bench.sides import Side

BACKENDS = ("redis", "nats", "kafka")
CEILING, CLIENT, FRAMEWORK, BUS = "ceiling", "client", "FastStream", "bus"
MSIGHT = "MSight Core"
CONFLUENT, CONFLUENT_TUNED = "confluent-kafka", "confluent-kafka, no linger"
ZMQ, ZENOH = "pyzmq, no broker", "zenoh, no broker"
RUNS = "ceiling in runs"
"""The ceiling with an optimization of the bus: messages of equal size are parsed in one loop."""

AGAIN = "ceiling again"
"""The ceiling again: its ratio to itself is the A/A band."""

ASYNCIO = "bus on asyncio"
"""The bus on asyncio's event loop; all others run on uvloop."""

ONE_TOPIC, ROUND_ROBIN, RUNS_OF_64 = "one topic", "round-robin", "runs of 64"

DROPPING, BLOCKING, FROZEN = "stalled subscriber, drop_oldest", "stalled subscriber, block", "publisher, frozen broker"

_BUS_SUBSCRIBER = Side("msight_bus.bench.sides:BusSubscriber")
_BUS_PUBLISHER = Side("msight_bus.bench.sides:BusPublisher")
_MSIGHT_IN, _MSIGHT_OUT = "benchmarks.peers.msight:ListenSubscriber", "benchmarks.peers.msight:PublishPublisher"
_BROKERLESS = {
    name: (Side(f"benchmarks.peers.brokerless:{kind}Publisher"), Side(f"benchmarks.peers.brokerless:{kind}Subscriber"))
    for name, kind in ((ZMQ, "Zmq"), (ZENOH, "Zenoh"))
}
_ON_ASYNCIO = Side(_BUS_PUBLISHER.path, loop="asyncio"), Side(_BUS_SUBSCRIBER.path, loop="asyncio")


@dataclass(frozen=True, slots=True)
class Catalog:
    """The candidates of one backend by name.

    Attributes:
        subscribers: subscribers, which receive from ``feeder`` or read a log.
        publishers: publishers, which send to ``sink`` or write a log.
        latency: pairs of a publisher and a subscriber.
        titles: descriptions of the names on this backend.
        topics: feeder and subscriber of runs with one topic and with many topics.
        memory: sides whose memory is measured while ``flooder`` sends, or while the broker is frozen.
        flooder: publisher with a fixed rate.
        idle: side that is measured with many topics and no messages.
        feeder: writes bytes that were encoded before the run; ``None`` if the broker keeps messages.
        sink: counts published messages; ``None`` if the broker keeps messages.
    """

    subscribers: Mapping[str, Side]
    publishers: Mapping[str, Side]
    latency: Mapping[str, tuple[Side, Side]]
    titles: Mapping[str, str]
    memory: Mapping[str, Side]
    flooder: Side
    topics: Mapping[str, tuple[Side, Side]] = field(default_factory=dict)
    idle: Mapping[str, Side] = field(default_factory=dict)
    feeder: Side | None = None
    sink: Side | None = None


def catalog(backend: str, topics: int) -> Catalog:
    """Return the candidates of ``backend``; ``topics`` is the number of topics of runs with many topics."""
    return _kafka(topics) if backend == "kafka" else _live(backend, topics)


def _live(backend: str, topics: int) -> Catalog:
    ceiling, peer = f"benchmarks.ceilings.{backend}:", f"benchmarks.peers.{backend}:"
    framework = "benchmarks.peers.faststream:"
    raw_in, raw_out = Side(ceiling + "RawSubscriber"), Side(ceiling + "RawPublisher")
    if backend == "redis":
        own_in, own_out, prefix = Side(peer + "ListenSubscriber"), Side(peer + "PipelinePublisher"), 32
        client = "redis-py: PubSub.listen(); pipelines of 64; publish() for latency"
    else:
        own_in, own_out, prefix = Side(peer + "IterSubscriber"), Side(peer + "HeaderPublisher"), 0
        client = "nats-py: async for; publish() with the same header"
    feeder = f"benchmarks.feeders:{backend.capitalize()}Feeder"
    return Catalog(
        subscribers={
            CEILING: raw_in,
            RUNS: Side(raw_in.path, {"runs": True}),
            CLIENT: own_in,
            FRAMEWORK: Side(framework + "HandlerSubscriber", {"backend": backend, "prefix": prefix}),
            MSIGHT: Side(_MSIGHT_IN, {"backend": backend, "prefix": prefix}),
            BUS: _BUS_SUBSCRIBER,
            ASYNCIO: _ON_ASYNCIO[1],
            AGAIN: raw_in,
        },
        publishers={
            CEILING: raw_out,
            CLIENT: own_out,
            MSIGHT: Side(_MSIGHT_OUT, {"backend": backend}),
            BUS: _BUS_PUBLISHER,
            AGAIN: raw_out,
        },
        latency={
            CEILING: (raw_out, raw_in),
            CLIENT: (own_out, own_in),
            FRAMEWORK: (
                Side(framework + "BrokerPublisher", {"backend": backend}),
                Side(framework + "HandlerSubscriber", {"backend": backend}),
            ),
            MSIGHT: (Side(_MSIGHT_OUT, {"backend": backend}), Side(_MSIGHT_IN, {"backend": backend})),
            BUS: (_BUS_PUBLISHER, _BUS_SUBSCRIBER),
            ASYNCIO: _ON_ASYNCIO,
            **_BROKERLESS,
            AGAIN: (raw_out, raw_in),
        },
        titles={
            CEILING: "raw protocol that parses each message, behind an async iterator; coalescing writer",
            RUNS: "the same, but messages of one size are taken at once, as by the bus",
            CLIENT: client,
            ONE_TOPIC: "the bus: one subscription, one consumer task",
            ROUND_ROBIN: f"the bus: {topics} subscriptions and consumer tasks, each message to the next topic",
            RUNS_OF_64: "the same, 64 messages to a topic before the next",
            **_COMMON,
        },
        topics={
            name: (
                Side(feeder, {"topics": many, "run": run}),
                Side("benchmarks.many_topics:BusTopicsSubscriber", {"topics": many}),
            )
            for name, many, run in ((ONE_TOPIC, 1, 1), (ROUND_ROBIN, topics, 1), (RUNS_OF_64, topics, 64))
        },
        memory=_MEMORY,
        flooder=raw_out,
        feeder=Side(feeder),
        sink=Side(f"benchmarks.sinks:{backend.capitalize()}Sink"),
    )


def _kafka(topics: int) -> Catalog:
    ceiling, peer, framework = "benchmarks.ceilings.kafka:", "benchmarks.peers.kafka:", "benchmarks.peers.faststream:"
    many, each = Side(ceiling + "GetManySubscriber"), Side(peer + "IterSubscriber")
    by_hand = Side(ceiling + "HandBatchPublisher")
    handler = Side(framework + "HandlerSubscriber", {"backend": "kafka"})
    confluent = "benchmarks.peers.confluent:"
    producer, consumer = Side(confluent + "ProducePublisher"), Side(confluent + "ConsumeSubscriber")
    old = Side(_MSIGHT_OUT, {"backend": "kafka"}), Side(_MSIGHT_IN, {"backend": "kafka"})
    tuned = (Side(peer + "SendPublisher", {"batch_bytes": 256 * 1024}), many)
    return Catalog(
        subscribers={
            CEILING: many,
            CLIENT: each,
            FRAMEWORK: handler,
            CONFLUENT: consumer,
            MSIGHT: old[1],
            BUS: _BUS_SUBSCRIBER,
            ASYNCIO: _ON_ASYNCIO[1],
            AGAIN: many,
        },
        publishers={
            CEILING: by_hand,
            CLIENT: Side(peer + "SendPublisher"),
            CONFLUENT: producer,
            MSIGHT: old[0],
            BUS: _BUS_PUBLISHER,
            AGAIN: by_hand,
        },
        latency={
            CEILING: tuned,
            CLIENT: (Side(peer + "SendPublisher"), each),
            FRAMEWORK: (Side(framework + "BrokerPublisher", {"backend": "kafka"}), handler),
            CONFLUENT: (producer, consumer),
            CONFLUENT_TUNED: (Side(producer.path, {"linger_ms": 0.0}), consumer),
            MSIGHT: old,
            BUS: (_BUS_PUBLISHER, _BUS_SUBSCRIBER),
            ASYNCIO: _ON_ASYNCIO,
            AGAIN: tuned,
        },
        titles={
            CEILING: "aiokafka: getmany(); batches filled by hand; latency: send() and getmany(), tuned as the bus",
            CLIENT: "aiokafka: async for; send() and flush(); latency: untuned",
            CONFLUENT: "confluent-kafka: lists from consume(); produce() with its default linger of 5 ms",
            CONFLUENT_TUNED: "the same with a linger of 0",
            **_COMMON,
        },
        memory=_MEMORY,
        flooder=by_hand,
        idle={BUS: Side("benchmarks.observers:IdleTopics", {"topics": topics})},
    )


_STALLED = "benchmarks.observers:StalledSubscriber"
_MEMORY = {
    DROPPING: Side(_STALLED, {"policy": "drop_oldest"}),
    BLOCKING: Side(_STALLED, {"policy": "block"}),
    FROZEN: Side("benchmarks.observers:FrozenPublisher"),
}
_COMMON = {
    DROPPING: "the bus: takes nothing while 128 KiB come 300 times a second; default queue",
    BLOCKING: "the same, with QueuePolicy.block()",
    FROZEN: "the bus: publishes 128 KiB as fast as it may, to a broker that has stopped",
    FRAMEWORK: "FastStream: a handler of bytes; broker.publish()",
    MSIGHT: "MSight Core's pub/sub layer: listen(); publish(), which waits for each message",
    BUS: "async for message in subscription; publisher.send()",
    ZMQ: "pyzmq: XPUB and SUB sockets of zmq.asyncio, connected to each other",
    ZENOH: "zenoh: put(), and a callback in its thread that fills an asyncio.Queue; peers connected to each other",
    ASYNCIO: "the bus on asyncio's own event loop; everything else is on uvloop",
    AGAIN: "the ceiling a second time",
}
