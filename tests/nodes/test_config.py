"""Wrong configurations are refused at once, with every wrong field named."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from msight_bus import ConfigError, ImageData, QueuePolicy
from msight_bus.nodes import NodeConfig, SinkNode, SourceNode
from tests.support.nodes import Apply, Collect, Numbers

MSIGHT_FIELDS = [
    "name",
    "publish_topic_name",
    "subscribe_topic_name",
    "publish_topic_data_type",
    "subscribe_topic_data_type",
    "heartbeat_update_interval",
    "action_on_error",
    "heartbeat_tolerance",
    "heartbeat_checking_duration",
    "gap",
    "group_id",
    "sensor_name",
    "logging_level",
]


def test_the_fields_are_those_of_msight_and_a_few_more():
    more = [
        "queue",
        "concurrency",
        "deadline",
        "lifespan",
        "dead_letter_topic_name",
        "key",
        "while_disconnected",
        "spread",
        "start",
        "instance_id",
    ]
    assert [field.name for field in dataclasses.fields(NodeConfig)] == [*MSIGHT_FIELDS, *more]


def test_a_dead_letter_is_not_taken_again():
    with pytest.raises(ConfigError, match="must differ from"):
        NodeConfig(name="n", subscribe_topic_name="a", dead_letter_topic_name="a")


def test_everything_at_once_can_be_right():
    config = NodeConfig(
        name="cam-ne_1.detector",
        publish_topic_name="objects",
        subscribe_topic_name="cam.ne",
        publish_topic_data_type=ImageData,
        subscribe_topic_data_type=bytes,
        heartbeat_update_interval=1,
        action_on_error="continue",
        heartbeat_tolerance=-1,
        heartbeat_checking_duration=0.5,
        gap=2,
        group_id="detectors",
        sensor_name="cam",
        logging_level="debug",
        queue=QueuePolicy.latest(),
        concurrency=4,
        deadline=1.5,
        lifespan=1,
        dead_letter_topic_name="cam.dead",
        start="earliest",
        instance_id="worker-1",
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gap = 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "two words"),
        ("name", "n" * 195),
        ("name", None),
        ("publish_topic_name", "_msight.nodes"),
        ("subscribe_topic_name", "a b"),
        ("subscribe_topic_name", 3),
        ("publish_topic_data_type", "ImageData"),
        ("subscribe_topic_data_type", int),
        ("heartbeat_update_interval", 0),
        ("heartbeat_update_interval", float("nan")),
        ("heartbeat_update_interval", 3601),
        ("heartbeat_update_interval", "10"),
        ("action_on_error", "ignore"),
        ("heartbeat_tolerance", "long"),
        ("heartbeat_checking_duration", -1),
        ("gap", -1),
        ("gap", 1.5),
        ("group_id", "a group"),
        ("sensor_name", 7),
        ("logging_level", "LOUD"),
        ("queue", 10),
        ("concurrency", 0),
        ("concurrency", True),
        ("concurrency", 1001),
        ("dead_letter_topic_name", "a b"),
        ("instance_id", ""),
        ("instance_id", "worker 1"),
        ("instance_id", "."),
        ("instance_id", "w" * 201),
        ("instance_id", 1),
    ],
)
def test_a_wrong_value_names_its_field(field, value):
    with pytest.raises(ConfigError, match=rf"NodeConfig\.{field} must be .*, not "):
        NodeConfig(**{"name": "n", field: value})


def test_all_wrong_fields_are_named_together():
    with pytest.raises(ConfigError) as caught:
        NodeConfig(name="n", gap=-1, concurrency=0, action_on_error="shrug")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (Numbers, "publish_topic_name"),
        (Collect, "subscribe_topic_name"),
        (lambda config: Apply(config, None), "subscribe_topic_name"),
    ],
)
def test_a_node_without_the_topics_that_it_needs(make, field):
    with pytest.raises(ConfigError, match=rf"NodeConfig\.{field} of 'n' is missing"):
        make(NodeConfig(name="n"))


def test_a_processing_node_without_any_topic_names_both():
    with pytest.raises(ConfigError) as caught:
        Apply(NodeConfig(name="n"), None)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("make", [Numbers, Collect])
def test_a_topic_that_a_node_would_not_use(make):
    with pytest.raises(ConfigError, match="does not use it"):
        make(NodeConfig(name="n", publish_topic_name="a", subscribe_topic_name="b"))


def test_what_a_subclass_has_to_define():
    config = NodeConfig(name="n", publish_topic_name="a")

    class Neither(SourceNode):
        pass

    class Both(SourceNode):
        async def get_data(self):
            return b""

        async def stream(self):
            yield b""

    for wrong in (Neither, Both):
        with pytest.raises(ConfigError, match="either get_data or stream"):
            wrong(config)
    with pytest.raises(TypeError, match="on_message"):
        SinkNode(NodeConfig(name="n", subscribe_topic_name="a"))
    with pytest.raises(ConfigError, match="takes a NodeConfig"):
        Numbers({"name": "n"})


def test_a_field_that_is_unknown_names_the_nearest_one():
    with pytest.raises(ConfigError) as caught:
        NodeConfig(name="n", subscribe_topic="a", heartbeat_interval=1)
    assert caught.value.problems == (
        "NodeConfig has no field 'subscribe_topic'; did you mean 'subscribe_topic_name'?",
        "NodeConfig has no field 'heartbeat_interval'; did you mean 'heartbeat_update_interval'?",
    )


def test_a_configuration_can_be_copied_and_replaced():
    config = NodeConfig(name="n", gap=2)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, name="other").gap == 2


def test_a_queue_that_is_no_policy_is_told_with_an_example():
    with pytest.raises(ConfigError, match=r"NodeConfig.queue must be a QueuePolicy such as QueuePolicy.block\(\)"):
        NodeConfig(name="n", queue="block")
