from __future__ import annotations

import ssl

import pytest

from msight_bus.errors import ConfigError
from msight_bus.settings import BusSettings, ConfigWarning, InsecureWarning, NatsServer, NatsSettings

NATS = "MSIGHT_NATS_"


def nats(**variables: str) -> NatsSettings:
    return BusSettings(backend="nats", environ={f"{NATS}{name}": value for name, value in variables.items()}).nats


def test_defaults():
    assert nats().servers == (NatsServer("localhost", 4222),)
    assert nats().ssl_context() is None


def test_servers_in_all_syntaxes():
    expected = (NatsServer("a", 4222), NatsServer("b", 4223, tls=True))
    for text in ("['nats://a:4222', 'tls://b:4223']", '["nats://a:4222", "tls://b:4223"]', "nats://a,tls://b:4223"):
        assert nats(SERVERS=text).servers == expected


def test_a_tls_url_turns_tls_on_for_all_servers():
    assert nats(SERVERS="nats://a,tls://b").encrypted
    assert not nats(SERVERS="nats://a,nats://b").encrypted
    assert nats(SERVERS="nats://a", USE_TLS="1").encrypted


@pytest.mark.parametrize(
    "way",
    [
        {"USERNAME": "u", "PASSWORD": "p"},
        {"TOKEN": "t"},
        {"NKEY_SEED": "SU..."},
        {"NKEY_SEED": "SU...", "USER_JWT": "ey..."},
        {"SERVERS": "nats://u:p@localhost"},
    ],
)
def test_each_way_to_authenticate(way):
    settings = nats(**way)
    for name in way.keys() - {"SERVERS", "USERNAME"}:
        assert getattr(settings, name.lower()).get_secret_value() == way[name]


WAYS = {
    "SERVERS": {"SERVERS": "nats://u:p@localhost"},
    "USERNAME": {"USERNAME": "u", "PASSWORD": "p"},
    "TOKEN": {"TOKEN": "t"},
    "NKEY_SEED": {"NKEY_SEED": "s"},
    "USER_CREDENTIALS": {"USER_CREDENTIALS": __file__},
}


@pytest.mark.parametrize(("one", "other"), [(a, b) for a in WAYS for b in WAYS if a < b])
def test_two_ways_to_authenticate_contradict_each_other(one, other):
    with pytest.raises(ConfigError, match="are different authentication methods") as caught:
        nats(**WAYS[one], **WAYS[other])
    assert len(caught.value.problems) == 1
    assert NATS + one in str(caught.value)
    assert NATS + other in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"), [("USERNAME", "PASSWORD"), ("PASSWORD", "USERNAME"), ("USER_JWT", "NKEY_SEED")]
)
def test_half_a_way_to_authenticate(one, other):
    with pytest.raises(ConfigError, match=f"^{NATS}{one} requires {NATS}{other}; set both.$"):
        nats(**{one: "x"})


@pytest.mark.parametrize("way", WAYS)
def test_credentials_in_clear_text_are_loud_unless_they_stay_here(way):
    variables = {"SERVERS": "nats://nats.example"} | WAYS[way]
    variables["SERVERS"] = variables["SERVERS"].replace("localhost", "nats.example")
    with pytest.warns(InsecureWarning, match=rf"^{NATS}{way} would be sent to nats\.example unencrypted"):
        nats(**variables)
    nats(**WAYS[way])  # a warning would fail this test
    nats(**variables, USE_TLS="1")


def test_turning_verification_off_is_loud():
    for variables in ({"USE_TLS": "1"}, {"SERVERS": "tls://a"}):
        with pytest.warns(InsecureWarning, match="TLS_VERIFY=false"):
            context = nats(TLS_VERIFY="0", **variables).ssl_context()
        assert context is not None
        assert context.verify_mode is ssl.CERT_NONE
    with pytest.raises(ConfigError, match="TLS_VERIFY=false has no effect without TLS"):
        nats(TLS_VERIFY="0")


def test_files_without_tls_have_no_effect():
    with pytest.warns(ConfigWarning, match=f"{NATS}TLS_CA_CERT_FILE has no effect without {NATS}USE_TLS=true"):
        nats(TLS_CA_CERT_FILE=__file__)
