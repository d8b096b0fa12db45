"""The Kafka backend: a log, delivered at least once."""

from msight_bus.backends.kafka.backend import KafkaBackend

__all__ = ["KafkaBackend"]
