"""The only package that uses names outside aiokafka's documented API. Other modules import them from here.

aiokafka can change these names in any release: the import fails if one is missing, and `check_aiokafka` checks the version.
"""

from __future__ import annotations

from msight_bus.backends.client_library import ClientLibrary

AIOKAFKA = ClientLibrary("aiokafka", oldest="0.14", newest="0.14.0")

try:
    from aiokafka.client import AIOKafkaClient
    from aiokafka.conn import AIOKafkaConnection
    from aiokafka.consumer.group_coordinator import GroupCoordinator
    from aiokafka.partitioner import murmur2
    from aiokafka.protocol.admin import (
        CreateTopicsRequest,
        DescribeConfigsRequest,
        ListGroupsRequest,
    )
    from aiokafka.protocol.commit import OffsetFetchRequest
    from aiokafka.protocol.metadata import MetadataRequest
    from aiokafka.protocol.transaction import InitProducerIdRequest
    from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
    from aiokafka.record.legacy_records import LegacyRecordBatch

    from msight_bus.backends.kafka.aiokafka_compat.added_requests import EpochEndRequest, read_epoch_end
    from msight_bus.backends.kafka.aiokafka_compat.client import Client, read_partitions
    from msight_bus.backends.kafka.aiokafka_compat.connection import Connection
    from msight_bus.backends.kafka.aiokafka_compat.groups import (
        ClassicGroupsRequest,
        ConsumerGroupsRequest,
        read_classic_groups,
        read_consumer_groups,
    )
    from msight_bus.backends.kafka.aiokafka_compat.log_filters import install_log_filters
    from msight_bus.backends.kafka.aiokafka_compat.member import Member
    from msight_bus.backends.kafka.aiokafka_compat.record_batches import (
        CODECS,
        RecordHeader,
        batch_builder,
        has_valid_checksum,
        read_batch,
        record_bytes,
    )
    from msight_bus.backends.kafka.aiokafka_compat.requests import (
        EARLIEST,
        LATEST,
        READ_COMMITTED,
        READ_UNCOMMITTED,
        FetchAnswer,
        FetchRequest,
        offsets_request,
        produce_request,
        read_offsets,
        read_produce,
    )
    from msight_bus.backends.kafka.aiokafka_compat.topic_identity import (
        TopicIdentitiesRequest,
        TopicIdentity,
    )
except ImportError as error:
    if (error.name or "").startswith("msight_bus"):
        raise
    raise AIOKAFKA.lacks(str(error)) from error

__all__ = [
    "AIOKAFKA", "CODECS", "EARLIEST", "LATEST", "READ_COMMITTED", "READ_UNCOMMITTED", "ClassicGroupsRequest", "Client",
    "Connection", "ConsumerGroupsRequest", "CreateTopicsRequest", "DefaultRecordBatch", "DescribeConfigsRequest",
    "EpochEndRequest",
    "FetchAnswer", "FetchRequest", "InitProducerIdRequest", "LegacyRecordBatch", "ListGroupsRequest",
    "Member", "MetadataRequest", "OffsetFetchRequest", "RecordHeader", "TopicIdentitiesRequest", "TopicIdentity",
    "batch_builder", "check_aiokafka", "has_valid_checksum", "murmur2", "offsets_request", "produce_request", "read_batch",
    "read_classic_groups", "read_consumer_groups", "read_epoch_end", "read_offsets", "read_partitions", "read_produce",
    "record_bytes",
]  # fmt: skip

install_log_filters()


def check_aiokafka() -> None:
    """Log a WARNING, once in a process, if the installed aiokafka is not a tested version.

    Raises:
        BusError: the installed aiokafka lacks an attribute that this package uses.
    """
    AIOKAFKA.check(
        (AIOKafkaClient, ("_get_conn", "_metadata_update", "_md_synchronizer", "_on_connection_closed")),
        (AIOKafkaClient, ("force_metadata_update", "hosts")),
        (AIOKafkaClient(), ("cluster", "_conns", "_topics", "_sync_task", "_request_timeout_ms", "_retry_backoff")),
        (AIOKafkaClient().cluster, ("_partitions",)),
        (AIOKafkaConnection, ("connected", "send", "close", "authenticator_oauth", "_next_correlation_id")),
        (AIOKafkaConnection("", 0), ("_requests", "_writer", "_on_close_cb", "_request_timeout", "_loop")),
        (AIOKafkaConnection("", 0), ("_versions", "_client_id")),
        (GroupCoordinator, ("_send_req", "_maybe_leave_group", "request_rejoin", "check_errors", "_do_commit_offsets")),
        (
            GroupCoordinator,
            ("fetch_committed_offsets", "_on_join_complete", "reset_generation", "_get_metadata_snapshot"),
        ),
        (DefaultRecordBatchBuilder, ("append", "build", "set_producer_state", "estimate_size_in_bytes")),
        (DefaultRecordBatch, ("validate_crc",)),
    )
