"""A refusal on reconnecting is raised at once, by iterators and by waiting publishers, and ends the reconnecting."""

from __future__ import annotations

import asyncio

import pytest

import msight_bus
from msight_bus import AuthenticationError, ConnectionLostError, brokers
from msight_bus.events import Disconnected, Reconnected
from tests.support.canaries import canary, found_in
from tests.support.listeners import fake, proxy
from tests.support.peers import Peer
from tests.support.repeated_errors import assert_does_not_grow
from tests.support.servers import CREDENTIALS, LIVE, OTHER_PASSWORD, PASSWORD, door, start, variables
from tests.support.talking import QUICK, Seen, new_topic, settings_of


def tls(made):
    return {"USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca}


def reconnecting():
    names = ("msight_bus connection to ", "msight_bus kafka watch")
    return [task for task in asyncio.all_tasks() if task.get_name().startswith(names) and not task.done()]


async def publish_for_certain(bus, topic):
    async with bus.publisher(topic) as publisher:
        await publisher.send(b"while away")


async def errors_of_all(bus, topic, messages, waiting):
    """What the iterator, a publisher that waits and one that comes later are told; then nobody would try again."""
    async with asyncio.timeout(8):
        told = await asyncio.gather(anext(messages), waiting, return_exceptions=True)
        while reconnecting():
            await asyncio.sleep(0.01)
        told += await asyncio.gather(bus.publish(topic, b"x"), return_exceptions=True)
    assert [type(error) for error in told] == [AuthenticationError] * 3
    return told


@pytest.mark.parametrize("kind", LIVE)
async def test_a_changed_password_after_a_restart_is_raised(kind, watch):
    port, topic, events = brokers.free_port(), new_topic(), Seen()
    first = await asyncio.to_thread(start, kind, port=port, config=door(kind, PASSWORD))
    with first:
        settings = settings_of(variables(kind, port, **CREDENTIALS[kind]), **QUICK)
        async with msight_bus.connect(settings, on_event=events.append) as bus, bus.subscribe(topic) as messages:
            await bus.publish(topic, b"before")
            assert (await anext(messages)).payload == b"before"
            await asyncio.to_thread(first.stop)
            await events.wait_for(Disconnected)
            waiting = asyncio.create_task(publish_for_certain(bus, topic))
            with await asyncio.to_thread(start, kind, port=port, config=door(kind, OTHER_PASSWORD)):
                watch.show(*await errors_of_all(bus, topic, messages, waiting))
    watch.show(*events)


@pytest.mark.parametrize("kind", LIVE)
async def test_a_changed_certificate_on_reconnecting_is_raised(kind, secured, made, watch):
    topic, servers, events = new_topic(), secured(kind), Seen()
    async with servers.at("server") as right, servers.at("expired") as wrong, proxy(right.port) as way:
        settings = settings_of(variables(kind, way.port, **CREDENTIALS[kind], **tls(made)), **QUICK)
        async with msight_bus.connect(settings, on_event=events.append) as bus, bus.subscribe(topic) as messages:
            way.target = wrong.port
            right.cut()
            way.cut()
            await events.wait_for(Disconnected)
            waiting = asyncio.create_task(publish_for_certain(bus, topic))
            watch.show(*await errors_of_all(bus, topic, messages, waiting))


@pytest.mark.parametrize("kind", LIVE)
async def test_a_server_without_tls_on_reconnecting_is_retried_and_gets_no_credentials(kind, secured, made, watch):
    topic, servers, events = new_topic(), secured(kind), Seen()
    limits = QUICK | {"MSIGHT_CONNECT_TIMEOUT": "0.5", "MSIGHT_RECONNECT_LIMIT": "2"}
    async with servers.at("server") as right, servers.at("plain") as wrong, proxy(right.port) as way:
        settings = settings_of(variables(kind, way.port, **CREDENTIALS[kind], **tls(made)), **limits)
        async with msight_bus.connect(settings, on_event=events.append) as bus, bus.subscribe(topic) as messages:
            way.target = wrong.port
            way.cut()
            async with asyncio.timeout(15):
                with pytest.raises(ConnectionLostError, match="MSIGHT_RECONNECT_LIMIT") as caught:
                    await anext(messages)
        watch.show(caught.value, *events)
        assert wrong.connections >= 2
        assert not found_in(wrong.bytes.decode("latin-1"))


async def test_a_connection_lost_right_after_its_last_confirmation_is_retried():
    spoiling = False

    def subscriptions():
        return [command.words[0] for command in peer.told("SUB")].count(b"a")

    def answer(command):
        nonlocal spoiling
        if not (spoiling and command.verb == "PING" and subscriptions()):
            return None
        spoiling = False
        return b"PONG\r\n-ERR 'Maximum Connections Exceeded'\r\n"

    peer = Peer("nats", answer)
    async with fake(peer) as way:
        async with msight_bus.connect(settings_of(variables("nats", way.port), **QUICK)) as bus, bus.subscribe("a"):
            peer.commands.clear()
            spoiling = True
            way.cut()
            async with asyncio.timeout(10):
                while subscriptions() < 2:
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", LIVE)
async def test_a_revoked_permission_ends_its_subscription_only(kind, watch):
    port, events, secret = brokers.free_port(), Seen(), canary("permission")

    def rules(topics):
        if kind == "redis":
            return [f"user alice on >{secret} ~* resetchannels {' '.join(f'&{topic}' for topic in topics)} +@all"]
        allowed = "[" + ", ".join(f'"{topic}"' for topic in topics) + "]"
        return [
            f'authorization {{ users: [{{user: alice, password: "{secret}",',
            f"  permissions: {{publish: {allowed}, subscribe: {allowed}}}}}] }}",
        ]

    settings = settings_of(variables(kind, port, USERNAME="alice", PASSWORD=secret), **QUICK)
    with await asyncio.to_thread(start, kind, port=port, config=rules(["kept", "taken"])) as first:
        async with msight_bus.connect(settings, on_event=events.append) as bus:
            async with bus.subscribe("kept") as kept, bus.subscribe("taken") as taken:
                await asyncio.to_thread(first.stop)
                with await asyncio.to_thread(start, kind, port=port, config=rules(["kept"])):
                    await events.wait_for(Reconnected)
                    async with asyncio.timeout(15):
                        with pytest.raises(AuthenticationError) as caught:
                            await anext(taken)
                        await bus.publish("kept", b"still here")
                        assert (await anext(kept)).payload == b"still here"
    watch.show(caught.value, *events)


async def test_kafka_refuses_a_changed_password_on_reconnecting(secured, watch):
    topic, servers = new_topic(), secured("kafka")
    async with servers.before_and_after() as way:
        # A group's first member waits until the broker has made its offsets topic, on a busy machine for long.
        patient = {**QUICK, "MSIGHT_CONNECT_TIMEOUT": "20"}
        settings = settings_of(variables("kafka", way.port, **CREDENTIALS["kafka"]), **patient)
        async with msight_bus.connect(settings) as bus, bus.subscribe(topic) as messages:
            async with bus.subscribe(topic, group_id="g") as members:
                await bus.publish(topic, b"before")
                assert (await anext(messages)).payload == b"before"
                assert (await anext(members)).payload == b"before"
                way.target = servers.ports["after"]
                way.cut()
                waiting = asyncio.create_task(publish_for_certain(bus, topic))
                watch.show(*await errors_of_all(bus, topic, messages, waiting))
                with pytest.raises(AuthenticationError):
                    await anext(members)
                attempts = way.connections
                with pytest.raises(AuthenticationError):
                    await bus.publish(topic, b"x")
        assert way.connections <= attempts + 2  # each client may try to say goodbye


async def test_each_refusal_by_kafka_raises_a_new_error(secured):
    topic, servers = new_topic(), secured("kafka")
    async with servers.before_and_after() as way:
        settings = settings_of(variables("kafka", way.port, **CREDENTIALS["kafka"]), **QUICK)
        async with msight_bus.connect(settings) as bus, bus.subscribe(topic) as messages:
            publisher = await bus.publisher(topic).__aenter__()
            await publisher.send(b"before")
            async with asyncio.timeout(20):
                assert (await anext(messages)).payload == b"before"
                way.target = servers.ports["after"]
                way.cut()
                with pytest.raises(AuthenticationError):
                    await anext(messages)
                while reconnecting():
                    await asyncio.sleep(0.01)
            calls = [
                lambda: bus.publish(topic, bytes(10_000)),
                lambda: publisher.send(bytes(10_000)),
                lambda: anext(messages),
                lambda: bus.subscribe(topic).__aenter__(),
            ]
            for call in calls:
                await assert_does_not_grow(call, AuthenticationError)
