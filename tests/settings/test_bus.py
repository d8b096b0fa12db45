from __future__ import annotations

import json
import pickle
import warnings
from dataclasses import FrozenInstanceError, asdict

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from msight_bus.bus import connect
from msight_bus.errors import BusError, ConfigError
from msight_bus.settings import BusSettings, ConfigWarning, InsecureWarning, Limits, NatsSettings, RedisSettings

BACKENDS = ["redis", "nats", "kafka", "memory"]
VARIABLES = BusSettings.variables()
# Wrong whatever else is set. A file and a secret are wrong by what is on the disk: test_environment.py has them.
WRONG = {variable.name: "not what\nit takes" for variable in VARIABLES if not variable.secret}
SECTION_OF = {variable.name: variable.section for variable in VARIABLES}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_backend_in_any_case(backend):
    assert BusSettings(environ={"MSIGHT_PUBSUB_BACKEND": backend.upper()}).backend == backend
    assert BusSettings(environ={"MSIGHT_PUBSUB_BACKEND": "redis"}, backend=backend.title()).backend == backend


def test_a_wrong_backend_says_what_is_accepted():
    with pytest.raises(ConfigError) as caught:
        BusSettings(environ={"MSIGHT_PUBSUB_BACKEND": "rabbitmq"})
    assert caught.value.problems == (
        "MSIGHT_PUBSUB_BACKEND must be one of redis, nats, kafka, memory, such as MSIGHT_PUBSUB_BACKEND=nats; "
        "it is 'rabbitmq'.",
    )


def test_common_variables():
    environ = {"MSIGHT_STRICT": "Yes", "MSIGHT_EDGE_DEVICE_NAME": "edge", "MSIGHT_LOGGING_LEVEL": "debug"}
    settings = BusSettings(environ=environ)
    assert (settings.strict, settings.edge_device_name, settings.logging_level) == (True, "edge", "DEBUG")
    assert not BusSettings(environ={}).strict
    assert BusSettings(environ={"MSIGHT_DEAD_LETTER_SUFFIX": "-dead"}).dead_letter_suffix == "-dead"


@hypothesis_settings(deadline=None)
@given(st.sampled_from(BACKENDS), st.sets(st.sampled_from(sorted(WRONG)), min_size=1))
def test_everything_wrong_is_told_at_once_and_other_backends_only_warn(backend, names):
    names -= {"MSIGHT_PUBSUB_BACKEND"}
    expected = {name for name in names if SECTION_OF[name] in ("", "limits", backend)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            settings = BusSettings(environ={name: WRONG[name] for name in names}, backend=backend)
            problems: tuple[str, ...] = ()
        except ConfigError as error:
            problems, settings = error.problems, None
    assert {sentence.split()[0] for sentence in problems} == expected
    assert len(problems) == len(expected)
    warned = [warning for warning in caught if warning.category is ConfigWarning]
    assert {str(warning.message).split()[0] for warning in warned} == names - expected
    assert all(warning.filename == __file__ for warning in caught)
    if settings is not None:
        assert settings == BusSettings(environ={}, backend=backend)


def test_wrong_values_and_contradictions_are_told_together():
    with pytest.raises(ConfigError) as caught:
        BusSettings(
            environ={
                "MSIGHT_STRICT": "maybe",
                "MSIGHT_QUEUE_BYTES": "many",
                "MSIGHT_KAFKA_PARTITIONS": "0",
                "MSIGHT_KAFKA_SASL_USERNAME": "u",
                "MSIGHT_KAFKA_TLS_CERT_FILE": __file__,
                "MSIGHT_KAFKA_TLS_VERIFY": "no",
            },
            backend="kafka",
        )
    assert [sentence.split()[0] for sentence in caught.value.problems] == [
        "MSIGHT_STRICT",
        "MSIGHT_QUEUE_BYTES",
        "MSIGHT_KAFKA_PARTITIONS",
        "MSIGHT_KAFKA_TLS_CERT_FILE",
        "MSIGHT_KAFKA_TLS_VERIFY=false",
        "MSIGHT_KAFKA_SASL_USERNAME",
    ]
    assert str(caught.value) == "\n".join(caught.value.problems)


def test_contradictions_of_other_backends_warn_too():
    with pytest.warns(ConfigWarning, match=r"SASL_USERNAME requires .* This is an error when the backend is kafka\."):
        assert BusSettings(environ={"MSIGHT_KAFKA_SASL_USERNAME": "u"}).backend == "redis"


def test_an_error_comes_first_where_warnings_are_errors():
    environ = {"MSIGHT_REDIS_MESSAGE_BROKER_PORT": "x", "MSIGHT_KAFKA_PARTITIONS": "x"}
    with pytest.raises(ConfigError) as caught:
        BusSettings(environ=environ)
    assert len(caught.value.problems) == 1
    with pytest.raises(ConfigWarning):
        BusSettings(environ=environ, backend="nats")


def test_only_the_chosen_backend_has_notices():
    environ = {"MSIGHT_NATS_SERVERS": "nats://nats.example", "MSIGHT_NATS_TOKEN": "t"}
    BusSettings(environ=environ)  # a warning would fail this test
    with pytest.warns(InsecureWarning):
        BusSettings(environ=environ, backend="nats")


def test_keywords_override_variables():
    environ = {"MSIGHT_NATS_SERVERS": "nats://a", "MSIGHT_NATS_TOKEN": "t", "MSIGHT_STRICT": "1"}
    part = BusSettings(environ=environ, nats={"servers": ["nats://localhost"]}, strict=None, limits=None).nats
    assert [str(server) for server in part.servers] == ["nats://localhost:4222"]
    assert part.token is not None
    whole = BusSettings(environ=environ, nats=NatsSettings(username="u", password="p"), strict=False)
    assert whole.nats.token is None
    assert not whole.strict
    assert BusSettings(environ={}, limits=Limits(queue_messages=5)).limits.queue_messages == 5


def test_a_keyword_replaces_a_wrong_variable(tmp_path):
    environ = {"MSIGHT_REDIS_MESSAGE_BROKER_PORT": "x", "MSIGHT_REDIS_MESSAGE_BROKER_PASSWORD_FILE": "/none"}
    settings = BusSettings(environ=environ, redis={"port": 1, "password": "p"})
    assert settings.redis.port == 1
    assert BusSettings(environ=environ, redis=RedisSettings()).redis == RedisSettings()


def test_wrong_keywords_are_errors_whatever_the_backend():
    with pytest.raises(ConfigError) as caught:
        BusSettings(environ={}, bakend="nats", nats=5, kafka={"server": "a:1"}, limits={"queue_bytes": 0})
    assert list(caught.value.problems) == [
        "BusSettings has no setting 'bakend'; did you mean 'backend'?",
        "MSIGHT_QUEUE_BYTES must be a whole number of bytes from 1 to 1099511627776, such as "
        "MSIGHT_QUEUE_BYTES=1048576; it is 0.",
        "BusSettings(nats=...) must be a mapping or NatsSettings, not int.",
        "KafkaSettings has no setting 'server'; did you mean 'servers'?",
    ]


def test_whole_sections_are_checked_for_contradictions_as_well():
    section = NatsSettings(token="t", username="u", password="p")
    with pytest.raises(ConfigError, match="different authentication"):
        BusSettings(environ={}, nats=section)


def test_settings_are_frozen_values():
    settings = BusSettings(environ={})
    with pytest.raises(FrozenInstanceError):
        settings.backend = "nats"
    assert settings == BusSettings(environ={})
    assert pickle.loads(pickle.dumps(settings)) == settings


FULL = {
    "MSIGHT_REFUSAL_PATIENCE": "inf",
    "MSIGHT_REDIS_MESSAGE_BROKER_CLUSTER_NODES": "a:1,[::1]:2",
    "MSIGHT_REDIS_MESSAGE_BROKER_USE_CLUSTER": "1",
    "MSIGHT_NATS_SERVERS": "tls://[::1]:1,nats://b",
    "MSIGHT_KAFKA_REPLICATION": "3",
    "MSIGHT_WIRE": "raw",
    "MSIGHT_LOGGING_LEVEL": "debug",
}


@pytest.mark.parametrize("environ", [{}, FULL], ids=["defaults", "set"])
def test_a_dump_is_accepted_again_and_gives_the_same_settings(environ):
    settings = BusSettings(environ=environ)
    assert BusSettings(environ={}, **settings.dump()) == settings
    assert BusSettings(environ={}, **json.loads(json.dumps(settings.dump()))) == settings
    assert BusSettings(environ={}, **asdict(settings)) == settings


def test_a_dump_masks_secrets_and_a_mask_is_refused():
    settings = BusSettings(
        environ={
            "MSIGHT_NATS_SERVERS": "nats://u:CANARY@localhost",
            "MSIGHT_REDIS_MESSAGE_BROKER_PASSWORD": "CANARY",
        }
    )
    assert "CANARY" not in json.dumps(settings.dump())
    with pytest.raises(
        ConfigError, match=r"PASSWORD must be .*the mask of a dump[^$]*SERVERS must be .*the mask of a dump"
    ):
        BusSettings(environ={}, **settings.dump())


def test_a_misspelt_variable_is_an_error_with_strict():
    for strict in ({"strict": True}, {"strict": "yes"}):
        with pytest.raises(
            ConfigError, match="MSIGHT_PUBSUB_BACKND is not a variable.*did you mean MSIGHT_PUBSUB_BACKEND"
        ):
            BusSettings(environ={"MSIGHT_PUBSUB_BACKND": "nats"}, **strict)
    with pytest.raises(ConfigError) as caught:
        BusSettings(environ={"MSIGHT_PUBSUB_BACKND": "nats", "MSIGHT_STRICT": "1", "MSIGHT_QUEUE_BYTES": "x"})
    assert [sentence.split()[0] for sentence in caught.value.problems] == ["MSIGHT_QUEUE_BYTES", "MSIGHT_PUBSUB_BACKND"]


def test_an_environment_given_in_code_is_checked_as_one():
    environ = {"MSIGHT_KAFKA_MAX_REDELIVERIES": 0, "MSIGHT_STRICT": True, "MSIGHT_WIRE": None, 5: "5"}
    settings = BusSettings(environ=environ, backend="kafka")
    assert (settings.kafka.max_redeliveries, settings.strict, settings.redis.wire) == (0, True, "framed")
    with pytest.raises(ConfigError) as caught:
        BusSettings(environ="MSIGHT_STRICT=1", strict="x")
    assert [sentence.split()[0] for sentence in caught.value.problems] == ["MSIGHT_STRICT", "BusSettings(environ=...)"]


def test_what_the_environment_has_is_checked_beside_a_wrong_override():
    with pytest.raises(ConfigError) as caught:
        BusSettings(environ={"MSIGHT_NATS_TLS_FIRST": "x"}, backend="nats", nats=5)
    assert len(caught.value.problems) == 2


def test_config_errors_are_bus_errors_and_survive_a_pickle():
    with pytest.raises(BusError) as caught:
        BusSettings(environ={"MSIGHT_STRICT": "x", "MSIGHT_QUEUE_BYTES": "x"})
    error = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(error, ValueError)
    assert error.problems == caught.value.problems
    assert len(error.problems) == 2


FIELDS = sorted({variable.field for variable in VARIABLES})
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(object()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=5,
)
JUNK_SECTION = JUNK | st.dictionaries(
    st.sampled_from(FIELDS) | JUNK.filter(lambda name: type(name) in (str, int)), JUNK
)


@hypothesis_settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["limits", *BACKENDS[:3], *FIELDS]) | st.text(), JUNK_SECTION),
    JUNK | st.dictionaries(st.sampled_from([variable.name for variable in VARIABLES]) | st.integers(), JUNK),
)
def test_whatever_is_given_in_code_is_settings_or_one_config_error(keywords, environ):
    keywords.pop("environ", None)
    keywords.pop("self", None)
    with warnings.catch_warnings(action="ignore"):
        try:
            settings = BusSettings(environ=environ, **keywords)
        except ConfigError:
            return
        assert settings == BusSettings(environ={}, **asdict(settings))


def test_a_number_too_long_to_be_written_is_not_shown():
    with pytest.raises(ConfigError) as caught:
        BusSettings(environ={}, limits={"queue_bytes": 10**5000, 10**5000: 1}, nats={"servers": [10**5000]})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("suffix", ["dead letters", "ä", ".", "..dead", "dead.", "x" * 51, "a/b"])
def test_a_dead_letter_suffix_keeps_the_name_a_topic(suffix):
    with pytest.raises(ConfigError, match="DEAD_LETTER_SUFFIX must be"):
        BusSettings(environ={"MSIGHT_DEAD_LETTER_SUFFIX": suffix})


async def test_a_warning_points_to_the_line_of_the_user(monkeypatch):
    monkeypatch.setenv("MSIGHT_PUBSUB_BACKED", "nats")
    with pytest.warns(ConfigWarning) as caught:
        BusSettings()
        async with connect(backend="memory"):
            pass
    assert [warning.filename for warning in caught] == [__file__, __file__]


def test_a_setting_of_a_section_names_the_section():
    with pytest.raises(
        ConfigError, match=r"no setting 'connect_timeout'; .*BusSettings\(limits={'connect_timeout': ...}\)"
    ):
        BusSettings(environ={}, connect_timeout=5)
    with pytest.raises(ConfigError, match=r"a setting of redis and of nats"):
        BusSettings(environ={}, username="u")
