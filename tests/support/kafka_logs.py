"""The log of a partition, as a file of a stopped broker."""

from __future__ import annotations

from msight_bus.backends.kafka.batch_parsing import split
from msight_bus.brokers.running import RunningBroker


def cut(broker: RunningBroker, topic: str, batches: int) -> None:
    """Remove the last batches of partition 0, as a power failure before they are written to the disk."""
    (segment,) = broker.log_path.parent.glob(f"data/{topic}-0/*.log")
    written = list(split(segment.read_bytes()))
    segment.write_bytes(b"".join(written[:-batches]))
