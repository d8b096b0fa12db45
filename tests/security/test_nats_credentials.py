"""NATS: each way to authenticate is accepted or refused at once, and missing permissions are raised."""

from __future__ import annotations

import sys
import time
from urllib.parse import quote

import pytest

import msight_bus
from msight_bus import AuthenticationError, ConfigError
from msight_bus.events import Refused
from tests.support.canaries import canary, remember
from tests.support.identities import credentials_file, make_key, make_operator
from tests.support.listeners import proxy
from tests.support.servers import PASSWORD, WRONG, start, variables
from tests.support.talking import refused, settings_of, talk

TOKEN = canary("token")
ODD = remember(canary("odd") + "@:/?#[]%41 ö")
KEY, OTHER_KEY = make_key(), make_key()
OPERATOR, USER = make_operator(), make_key()
LIMITED = '{publish: {allow: ["ok.>"]}, subscribe: {allow: ["ok.>"]}}'


@pytest.fixture(scope="module")
def users():
    lines = [
        "authorization { users: [",
        f'  {{user: alice, password: "{PASSWORD}"}},',
        f'  {{user: odd, password: "{ODD}"}},',
        f"  {{nkey: {KEY.public}}},",
        f'  {{user: limited, password: "{PASSWORD}", permissions: {LIMITED}}}',
        "] }",
    ]
    with start("nats", config=lines) as broker:
        yield broker


@pytest.fixture(scope="module")
def token():
    with start("nats", config=[f'authorization {{ token: "{TOKEN}" }}']) as broker:
        yield broker


@pytest.fixture(scope="module")
def operator():
    preload = f"{OPERATOR.account.public}: {OPERATOR.account_jwt()}"
    lines = [f"operator: {OPERATOR.jwt()}", "resolver: MEMORY", f"resolver_preload: {{ {preload} }}"]
    with start("nats", config=lines) as broker:
        yield broker


def creds(folder, jwt, seed, newline="\n"):
    path = folder / "user.creds"
    path.write_text(credentials_file(jwt, seed, newline))
    return {"USER_CREDENTIALS": str(path)}


@pytest.mark.parametrize(
    "given",
    [
        {"USERNAME": "alice", "PASSWORD": PASSWORD},
        {"USERNAME": "odd", "PASSWORD": ODD},
        {"SERVERS": f"nats://alice:{PASSWORD}@127.0.0.1"},
        {"SERVERS": f"nats://odd:{quote(ODD, safe='')}@127.0.0.1"},
        {"NKEY_SEED": KEY.seed},
        {"NKEY_SEED": f"{KEY.seed}\n"},
    ],
    ids=["user", "odd", "url", "url-odd", "nkey", "nkey-line"],
)
async def test_a_known_user_or_key_is_accepted(users, given):
    if "SERVERS" in given:
        given = {"SERVERS": f"{given['SERVERS']}:{users.port}"}
    await talk(settings_of(variables("nats", users.port, **given)))


async def test_a_token_in_a_variable_or_url_is_accepted(token):
    await talk(settings_of(variables("nats", token.port, TOKEN=TOKEN)))
    await talk(settings_of(variables("nats", token.port, SERVERS=f"nats://{TOKEN}@127.0.0.1:{token.port}")))


async def test_a_jwt_with_its_seed_or_in_a_file_is_accepted(operator, tmp_path):
    jwt = OPERATOR.user_jwt(USER)
    await talk(settings_of(variables("nats", operator.port, USER_JWT=jwt, NKEY_SEED=USER.seed)))
    for newline in ("\n", "\r\n"):
        await talk(settings_of(variables("nats", operator.port, **creds(tmp_path, jwt, USER.seed, newline))))


async def test_a_seed_is_never_sent(users, operator):
    async with proxy(users.port) as way:
        await talk(settings_of(variables("nats", way.port, NKEY_SEED=KEY.seed)))
        assert KEY.seed[:20].encode() not in way.bytes
    async with proxy(operator.port) as way:
        jwt = OPERATOR.user_jwt(USER)
        await talk(settings_of(variables("nats", way.port, USER_JWT=jwt, NKEY_SEED=USER.seed)))
        assert USER.seed[:20].encode() not in way.bytes


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"USERNAME": "alice", "PASSWORD": WRONG},
        {"SERVERS": f"nats://alice:{WRONG}@127.0.0.1"},
        {"TOKEN": WRONG},
        {"NKEY_SEED": OTHER_KEY.seed},
    ],
    ids=["none", "user", "url", "token", "nkey"],
)
async def test_unknown_credentials_are_refused_once(users, watch, given):
    async with proxy(users.port) as way:
        if "SERVERS" in given:
            given = {"SERVERS": f"{given['SERVERS']}:{way.port}"}
        await refused(AuthenticationError, settings_of(variables("nats", way.port, **given)), watch, "(?i)authoriz")
        assert way.connections == 1


@pytest.mark.parametrize("how", ["expired", "stranger", "seed"])
async def test_an_invalid_jwt_is_refused_once(operator, watch, how):
    signer = make_operator() if how == "stranger" else OPERATOR
    jwt = signer.user_jwt(USER, expires=int(time.time()) - 60 if how == "expired" else None)
    seed = OTHER_KEY.seed if how == "seed" else USER.seed
    async with proxy(operator.port) as way:
        settings = settings_of(variables("nats", way.port, USER_JWT=jwt, NKEY_SEED=seed))
        await refused(AuthenticationError, settings, watch, "(?i)authoriz|authentication")
        assert way.connections == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"-----BEGIN NATS USER JWT-----\n", canary("no creds").encode(), b"\xff" * 99],
    ids=["nothing", "a beginning", "a text", "bytes"],
)
async def test_a_file_without_credentials_is_an_error_before_anything_is_connected(users, watch, tmp_path, content):
    (tmp_path / "wrong.creds").write_bytes(content)
    async with proxy(users.port) as way:
        settings = settings_of(variables("nats", way.port, USER_CREDENTIALS=str(tmp_path / "wrong.creds")))
        await refused(ConfigError, settings, watch, "MSIGHT_NATS_USER_CREDENTIALS")
        assert way.connections == 0


@pytest.mark.parametrize(
    "seed",
    [canary("no seed"), KEY.seed[:-1], KEY.seed[:-1] + "ö", KEY.public],
    ids=["a text", "too short", "a letter too many", "a public key"],
)
async def test_a_text_that_is_no_seed_is_an_error_before_anything_is_connected(users, watch, seed):
    async with proxy(users.port) as way:
        settings = settings_of(variables("nats", way.port, NKEY_SEED=seed))
        await refused(ConfigError, settings, watch, "MSIGHT_NATS_NKEY_SEED")
        assert way.connections == 0


async def test_without_the_package_that_signs_a_seed_is_an_error_before_anything_is_connected(
    users, watch, monkeypatch
):
    monkeypatch.setitem(sys.modules, "nkeys", None)  # as if it were not installed
    async with proxy(users.port) as way:
        settings = settings_of(variables("nats", way.port, NKEY_SEED=KEY.seed))
        await refused(ConfigError, settings, watch, "needs the package nkeys")
        assert way.connections == 0


async def test_a_missing_publish_permission_is_raised_by_the_next_publish(users, watch):
    events = []
    settings = settings_of(variables("nats", users.port, USERNAME="limited", PASSWORD=PASSWORD))
    async with msight_bus.connect(settings, on_event=events.append) as bus:
        with pytest.raises(AuthenticationError, match="(?i)permissions violation") as caught:
            async with bus.publisher("not.ok") as publisher:
                await publisher.send(b"x")
        watch.show(caught.value, *events)
        assert [event.topic for event in events if isinstance(event, Refused)] == ["not.ok"]

        await bus.publish("not.ok", b"x")
        async with bus.publisher("ok.a") as publisher:  # its round trip brings the refusal too
            await publisher.send(b"x")
        with pytest.raises(AuthenticationError, match="(?i)permissions violation"):
            await bus.publish("not.ok", b"x")


@pytest.mark.parametrize("group", [None, "g"])
async def test_a_missing_subscribe_permission_is_raised_on_entering(users, watch, group):
    settings = settings_of(variables("nats", users.port, USERNAME="limited", PASSWORD=PASSWORD))
    async with msight_bus.connect(settings) as bus:
        with pytest.raises(AuthenticationError, match="(?i)permissions violation") as caught:
            async with bus.subscribe("not.ok", group_id=group):
                pass
        watch.show(caught.value)
        async with bus.subscribe("ok.a", group_id=group) as messages:
            await bus.publish("ok.a", b"still here")
            assert (await anext(messages)).payload == b"still here"
