"""Kafka: each SASL mechanism is accepted or refused at once; missing permissions are raised; less verification is a warning."""

from __future__ import annotations

import pytest
from aiokafka.conn import create_conn
from aiokafka.protocol.admin import CreateAclsRequest

import msight_bus
from msight_bus import AuthenticationError
from tests.support.identities import oauth_token
from tests.support.servers import PASSWORD, USER, WRONG, variables
from tests.support.talking import new_topic, refused, settings_of, talk


def sasl(mechanism, password=PASSWORD, user=USER):
    if mechanism == "OAUTHBEARER":
        return {"SASL_MECHANISM": mechanism, "SASL_OAUTH_TOKEN": password}
    return {"SASL_MECHANISM": mechanism, "SASL_USERNAME": user, "SASL_PASSWORD": password}


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_scram_passes_and_the_password_does_not_travel(secured, mechanism):
    async with secured("kafka").at("scram") as way:
        await talk(settings_of(variables("kafka", way.port, **sasl(mechanism))))
        assert PASSWORD[:20].encode() not in way.bytes


async def test_a_bearer_token_passes(secured):
    async with secured("kafka").at("oauth") as way:
        await talk(settings_of(variables("kafka", way.port, **sasl("OAUTHBEARER", oauth_token(USER)))))


@pytest.mark.parametrize(
    ("flavour", "given"),
    [
        ("plain", sasl("PLAIN", WRONG)),
        ("plain", sasl("PLAIN", user="nobody")),
        ("scram", sasl("SCRAM-SHA-256", WRONG)),
        ("scram", sasl("SCRAM-SHA-512", WRONG)),
        ("scram", sasl("SCRAM-SHA-512", user="nobody")),
        ("oauth", sasl("OAUTHBEARER", oauth_token(USER, lives=-60))),
        ("oauth", sasl("OAUTHBEARER", WRONG)),
    ],
    ids=["plain", "plain-user", "scram-256", "scram-512", "scram-user", "oauth-expired", "oauth-nonsense"],
)
async def test_wrong_credentials_are_refused_once(secured, watch, flavour, given):
    async with secured("kafka").at(flavour) as way:
        await refused(AuthenticationError, settings_of(variables("kafka", way.port, **given)), watch)
        assert way.connections == 1


@pytest.mark.parametrize(
    ("flavour", "mechanism"), [("scram", "PLAIN"), ("plain", "SCRAM-SHA-512"), ("plain", "OAUTHBEARER")]
)
async def test_an_unsupported_mechanism_is_refused_once(secured, watch, flavour, mechanism):
    password = oauth_token(USER) if mechanism == "OAUTHBEARER" else PASSWORD
    async with secured("kafka").at(flavour) as way:
        settings = settings_of(variables("kafka", way.port, **sasl(mechanism, password)))
        await refused(AuthenticationError, settings, watch, "(?i)mechanism")
        assert way.connections == 1
        assert password[:20].encode() not in way.bytes


TOPIC = 2
READ, WRITE, DESCRIBE = 3, 4, 8
LITERAL = ALLOW = 3


async def allow(servers, user, *rights):
    """Grant ``user`` rights, as kafka-acls does; the broker's own listener takes anybody's word."""
    connection = await create_conn("127.0.0.1", servers.ports["own"])
    for kind, name, operation in rights:
        reply = await connection.send(CreateAclsRequest(kind, name, LITERAL, f"User:{user}", "*", operation, ALLOW))
        assert [entry[0] for entry in reply.creation_responses] == [0]
    connection.close()


async def test_a_missing_permission_is_raised_at_once(secured, watch):
    own, others = new_topic(), new_topic()
    servers = secured("kafka")
    await allow(servers, "bob", (TOPIC, own, WRITE), (TOPIC, own, READ), (TOPIC, own, DESCRIBE))
    async with servers.at("plain") as way:
        async with msight_bus.connect(settings_of(variables("kafka", way.port, **sasl("PLAIN")))) as bus:
            for topic in (own, others):
                await bus.publish(topic, b"made by one who may")
        async with msight_bus.connect(settings_of(variables("kafka", way.port, **sasl("PLAIN", user="bob")))) as bus:
            for group in (None, "g"):
                with pytest.raises(AuthenticationError) as subscribing:
                    async with bus.subscribe(others, group_id=group):
                        pass
                watch.show(subscribing.value)
            with pytest.raises(AuthenticationError) as publishing:
                await bus.publish(others, b"x")
            watch.show(publishing.value)
            async with bus.subscribe(own) as messages:
                await bus.publish(own, b"still here")
                assert (await anext(messages)).payload == b"still here"


async def test_a_missing_permission_for_a_group_is_raised_at_once(secured, watch):
    topic, servers = new_topic(), secured("kafka")
    await allow(servers, "bob", (TOPIC, topic, WRITE), (TOPIC, topic, READ), (TOPIC, topic, DESCRIBE))
    async with servers.at("plain") as way:
        environ = variables("kafka", way.port, **sasl("PLAIN"))
        async with msight_bus.connect(settings_of(environ)) as bus:
            await bus.publish(topic, b"made by one who may")
        environ = variables("kafka", way.port, **sasl("PLAIN", user="bob"))
        async with msight_bus.connect(settings_of(environ, MSIGHT_CONNECT_TIMEOUT="3")) as bus:
            with pytest.raises(AuthenticationError) as joining:
                async with bus.subscribe(topic, group_id="g"):
                    pass
    watch.show(joining.value)


async def test_a_user_with_read_permission_only_can_subscribe(secured):
    topic, servers = new_topic(), secured("kafka")
    await allow(servers, "bob", (TOPIC, topic, READ), (TOPIC, topic, DESCRIBE))
    async with servers.at("plain") as way:
        writing = settings_of(variables("kafka", way.port, **sasl("PLAIN")))
        reading = settings_of(variables("kafka", way.port, **sasl("PLAIN", user="bob")))
        async with msight_bus.connect(writing) as writer, msight_bus.connect(reading) as reader:
            await writer.publish(topic, b"0")
            async with reader.subscribe(topic) as messages:
                await writer.publish(topic, b"1")
                assert (await anext(messages)).payload == b"1"
            with pytest.raises(AuthenticationError):
                await reader.publish(topic, b"2")
