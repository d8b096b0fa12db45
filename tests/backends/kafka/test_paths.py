"""Changes between a bus and its brokers: silent network paths, brokers at other addresses, rotated certificates."""

from __future__ import annotations

import asyncio
import gc
import pathlib
import shutil
from contextlib import asynccontextmanager

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import RequestTimedOutError

import msight_bus
from msight_bus import AuthenticationError, ConnectionLostError, brokers
from msight_bus.backends.kafka.aiokafka_compat import READ_COMMITTED, Connection, FetchRequest
from msight_bus.events import Disconnected, Reconnected
from tests.support.brokers import Backend
from tests.support.certificates import make_certificates
from tests.support.kafka_admin import make
from tests.support.proxy import HOST, FaultProxy, port_of, through
from tests.support.receiving import take
from tests.support.rig import QUICKLY, own_broker, seen, until

pytestmark = pytest.mark.timeout(100)


class Path(FaultProxy):
    """A path that falls silent for the connections that it carries, without telling either side; new ones pass."""

    def __init__(self):
        super().__init__()
        self._silent = set()

    async def _copy(self, pair, source, target):
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, 65536):
            if pair not in self._silent:
                await loop.sock_sendall(target, data)

    def silence(self):
        """Drop whatever the present connections carry from now on."""
        self._silent |= self._pairs


@asynccontextmanager
async def behind(proxy):
    """Kafka, which tells its clients the proxy's address."""
    async with proxy:
        with own_broker("kafka", [f"advertised.listeners=CLIENT://{HOST}:{proxy.port}"]) as (broker, backend):
            proxy.broker_port = broker.port
            yield broker, through(proxy, backend)


@pytest.mark.faults
async def test_silent_connections_are_replaced():
    path, events = Path(), []
    settings = {**QUICKLY, "MSIGHT_CONNECT_TIMEOUT": "2"}
    async with behind(path) as (_, kafka), kafka.connect(events=events, **settings) as bus:
        async with bus.subscribe("old") as messages:
            await bus.publish("old", b"before")
            assert (await take(messages, 1))[0].payload == b"before"
            path.silence()
            await until(lambda: seen(events, Disconnected))
            await until(lambda: seen(events, Reconnected))
            await bus.publish("new", b"a topic not used before")
            await bus.publish("old", b"after")
            assert (await take(messages, 1))[0].payload == b"after"


@pytest.mark.faults
async def test_a_connection_without_an_answer_to_a_request_is_replaced_at_the_deadline():
    """The request and its caller have the same deadline, and no other task requests."""
    path = Path()
    settings = {"MSIGHT_PING_INTERVAL": "3600", "MSIGHT_CONNECT_TIMEOUT": "1"}
    async with behind(path) as (_, kafka), kafka.connect(**settings) as bus:
        await bus.publish("old", b"")
        path.silence()
        with pytest.raises(ConnectionLostError):
            await bus.publish("new", b"")
        await bus.publish("newer", b"")


@pytest.mark.parametrize("idle", [False, pytest.param(True, marks=pytest.mark.faults)])
async def test_a_fetch_without_an_answer_fails_at_the_deadline_and_closes_its_connection(kafka, topic, idle):
    """One timer serves all fetches of a connection, also those that are sent after it was set, or after it has fired."""
    await make(kafka, topic)
    where = TopicPartition(topic, 0)
    requests = []

    def fetch():
        requests.append(FetchRequest({where: 0}, READ_COMMITTED, 1000))
        return connection.write(requests[-1])

    async with Path() as path:
        path.broker_port = port_of(kafka)
        connection = Connection(HOST, path.port, request_timeout_ms=4000)
        await connection.connect()
        while (await fetch())[0].code:  # the topic is new
            await asyncio.sleep(0.1)
        assert [(part.where, part.code, part.data) for part in await fetch()] == [(where, 0, b"")]
        if idle:
            await until(lambda: asyncio.get_running_loop().time() > requests[-1].deadline)
        path.silence()
        async with asyncio.timeout(20):
            with pytest.raises(RequestTimedOutError):
                await fetch()
        assert not connection.connected()


@pytest.mark.faults
async def test_a_connection_without_an_answer_to_a_fetch_is_replaced_at_the_deadline():
    """Also if it answered the fetches before."""
    path = Path()
    settings = {"MSIGHT_PING_INTERVAL": "3600", "MSIGHT_CONNECT_TIMEOUT": "1"}
    async with behind(path) as (_, kafka), kafka.connect(**settings) as bus, bus.subscribe("t") as messages:
        for _ in range(3):
            await bus.publish("t", b"before")
            await take(messages, 1)
        path.silence()
        await bus.publish("t", b"after")
        assert (await take(messages, 1))[0].payload == b"after"


@pytest.mark.faults
async def test_an_unconfirmed_commit_is_logged_by_the_bus_only(caplog):
    """aiokafka continues the commit after the deadline, and no task retrieves its error."""
    path = Path()
    settings = {**QUICKLY, "MSIGHT_CONNECT_TIMEOUT": "4", "MSIGHT_KAFKA_SESSION_TIMEOUT": "2"}
    async with behind(path) as (_, kafka), kafka.connect(**settings) as bus:
        async with bus.subscribe("t", group_id="g", ack="manual") as messages:
            for number in range(2):
                await bus.publish("t", b"%d" % number)
                (message,) = await take(messages, 1)
                if number:
                    path.silence()
                await message.ack()
            await until(lambda: "did not confirm a commit" in caplog.text)
            await asyncio.sleep(6)  # aiokafka's own deadline, and a rebalance
    gc.collect()
    assert [line for line in caplog.messages if "never retrieved" in line or "max_poll_interval_ms" in line] == []


@pytest.mark.faults
async def test_brokers_that_restart_at_other_addresses_are_found_through_the_bootstrap_servers():
    events = []
    settings = {**QUICKLY, "MSIGHT_CONNECT_TIMEOUT": "2", "MSIGHT_PUBLISH_TIMEOUT": "30"}
    with own_broker("kafka") as (broker, backend):
        async with FaultProxy(broker.port) as bootstrap:
            kafka = through(bootstrap, backend)
            async with kafka.connect(events=events, **settings) as bus, bus.subscribe("t") as messages:
                await bus.publish("t", b"before")
                await take(messages, 1)
                await asyncio.to_thread(move, broker)
                bootstrap.broker_port = broker.port
                await bus.publish("t", b"after")
                assert (await take(messages, 1))[0].payload == b"after"
                await until(lambda: not seen(events, Disconnected) or seen(events, Reconnected))
                await bus.publish("new", b"a topic not used before")


def move(broker):
    """Start a broker anew at another port, with its data."""
    broker.kill()
    file = broker.log_path.parent / "server.properties"
    port = brokers.free_port()
    file.write_text(file.read_text().replace(f":{broker.port}", f":{port}"))
    broker.port = port
    broker.restart()


@asynccontextmanager
async def with_tls(folder, *more):
    """Kafka with TLS, its keystore, and settings that trust a file; ``more`` are lines of its configuration."""
    first = make_certificates(folder)
    keystore, trusted = folder / "keystore.pem", folder / "trusted.pem"
    shutil.copy(first.server.pem, keystore)
    shutil.copy(first.ca, trusted)
    controller, port = brokers.free_port(), brokers.free_port()
    lines = [
        f"listeners=CLIENT://{HOST}:{{port}},CONTROLLER://{HOST}:{controller},SECURE://{HOST}:{port}",
        f"advertised.listeners=CLIENT://{HOST}:{{port}},SECURE://{HOST}:{port}",
        f"controller.quorum.bootstrap.servers={HOST}:{controller}",
        "listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SSL",
        "listener.name.secure.ssl.keystore.type=PEM",
        f"listener.name.secure.ssl.keystore.location={keystore}",
        *more,
    ]
    with own_broker("kafka", lines) as (broker, _):
        variables = {
            "MSIGHT_KAFKA_SERVERS": f"{HOST}:{port}",
            "MSIGHT_KAFKA_USE_TLS": "true",
            "MSIGHT_KAFKA_TLS_CA_CERT_FILE": str(trusted),
        }
        yield broker, Backend("kafka", variables), keystore, trusted


def other_authority(folder):
    folder.mkdir()
    return make_certificates(folder)


@pytest.mark.faults
async def test_rotating_the_certificate_authority_in_order_interrupts_no_client(tmp_path):
    """The clients' bundle gets the new authority first, then the broker its new certificate."""
    events = []
    second = other_authority(tmp_path / "second")
    async with with_tls(tmp_path) as (broker, kafka, keystore, trusted):
        settings = {**QUICKLY, "MSIGHT_CONNECT_TIMEOUT": "2", "MSIGHT_PUBLISH_TIMEOUT": "30"}
        async with kafka.connect(events=events, **settings) as bus, bus.subscribe("t") as messages:
            await bus.publish("t", b"before")
            await take(messages, 1)
            trusted.write_text(trusted.read_text() + pathlib.Path(second.ca).read_text())
            shutil.copy(second.server.pem, keystore)
            await asyncio.to_thread(broker.restart)
            await bus.publish("t", b"after")
            assert (await take(messages, 1))[0].payload == b"after"


@pytest.mark.faults
@pytest.mark.parametrize("comes", [True, False])
async def test_a_refused_certificate_is_final_while_the_files_do_not_change(tmp_path, comes):
    """The broker's certificate is rotated first; the clients' file is changed later or not at all."""
    events = []
    second = other_authority(tmp_path / "second")
    async with with_tls(tmp_path) as (broker, kafka, keystore, trusted):
        settings = {**QUICKLY, "MSIGHT_CONNECT_TIMEOUT": "2", "MSIGHT_PUBLISH_TIMEOUT": "30"}
        settings["MSIGHT_REFUSAL_PATIENCE"] = "60" if comes else "0.5"
        async with kafka.connect(events=events, **settings) as bus, bus.subscribe("t") as messages:
            await bus.publish("t", b"before")
            await take(messages, 1)
            shutil.copy(second.server.pem, keystore)
            await asyncio.to_thread(broker.restart)
            await until(lambda: seen(events, Disconnected))
            if comes:
                shutil.copy(second.ca, trusted)
                await bus.publish("t", b"after")
                assert (await take(messages, 1))[0].payload == b"after"
            else:
                with pytest.raises(AuthenticationError, match="certificate"):
                    await take(messages, 1)
                with pytest.raises(AuthenticationError, match="certificate"):
                    await bus.publish("t", b"never")


@pytest.mark.faults
async def test_certificates_of_both_sides_are_rotated(tmp_path):
    """Broker and clients get certificates of another authority; the broker temporarily accepts both."""
    second = other_authority(tmp_path / "second")
    clients = tmp_path / "clients.pem"
    certificate, key = tmp_path / "own.pem", tmp_path / "own.key"
    lines = [
        "listener.name.secure.ssl.client.auth=required",
        "listener.name.secure.ssl.truststore.type=PEM",
        f"listener.name.secure.ssl.truststore.location={clients}",
    ]
    (tmp_path / "first").mkdir()
    first = make_certificates(tmp_path / "first")
    clients.write_text(pathlib.Path(first.ca).read_text() + pathlib.Path(second.ca).read_text())
    shutil.copy(first.client.cert, certificate)
    shutil.copy(first.client.key, key)
    async with with_tls(tmp_path, *lines) as (broker, kafka, keystore, trusted):
        own = {"MSIGHT_KAFKA_TLS_CERT_FILE": str(certificate), "MSIGHT_KAFKA_TLS_KEY_FILE": str(key)}
        settings = {**QUICKLY, **own, "MSIGHT_CONNECT_TIMEOUT": "2", "MSIGHT_PUBLISH_TIMEOUT": "30"}
        async with kafka.connect(**settings) as bus, bus.subscribe("t", group_id="g") as messages:
            await bus.publish("t", b"before")
            await take(messages, 1)
            trusted.write_text(trusted.read_text() + pathlib.Path(second.ca).read_text())
            shutil.copy(second.client.cert, certificate)
            shutil.copy(second.client.key, key)
            shutil.copy(second.server.pem, keystore)
            clients.write_text(pathlib.Path(second.ca).read_text())  # the former ones are not let in any more
            await asyncio.to_thread(broker.restart)
            await bus.publish("t", b"after")
            received = await take(messages, 1)
            if received[0].payload == b"before":  # not committed before the restart
                received = await take(messages, 1)
            assert received[0].payload == b"after"


@pytest.mark.faults
async def test_a_broker_that_temporarily_advertises_a_wrong_address_is_found_again():
    """The operator corrects the address later."""
    nowhere = brokers.free_port()
    events = []
    settings = {**QUICKLY, "MSIGHT_CONNECT_TIMEOUT": "2", "MSIGHT_PUBLISH_TIMEOUT": "30"}
    with own_broker("kafka", [f"advertised.listeners=CLIENT://{HOST}:{{port}}"]) as (broker, kafka):
        async with kafka.connect(events=events, **settings) as bus, bus.subscribe("t", group_id="g") as messages:
            await bus.publish("t", b"before")
            await take(messages, 1)
            file = broker.log_path.parent / "server.properties"
            right = file.read_text()
            assert f"advertised.listeners=CLIENT://{HOST}:{broker.port}" in right
            file.write_text(
                right.replace(f"listeners=CLIENT://{HOST}:{broker.port}\n", f"listeners=CLIENT://{HOST}:{nowhere}\n")
            )
            broker.kill()
            await asyncio.to_thread(broker.restart)
            await until(lambda: seen(events, Disconnected))
            publishing = asyncio.create_task(bus.publish("t", b"after"))
            await asyncio.sleep(3)
            file.write_text(right)
            broker.kill()
            await asyncio.to_thread(broker.restart)
            await publishing
            payload = b""
            while payload != b"after":
                payload = (await take(messages, 1))[0].payload


async def test_the_error_names_an_advertised_address_that_cannot_be_reached():
    nowhere = brokers.free_port()
    with own_broker("kafka", [f"advertised.listeners=CLIENT://{HOST}:{nowhere}"]) as (_, kafka):
        with pytest.raises(ConnectionLostError) as caught:
            async with kafka.connect(MSIGHT_CONNECT_TIMEOUT="3") as bus:
                await bus.publish("t", b"x")
    assert f"{HOST}:{nowhere}" in str(caught.value)
    assert "advertised.listeners" in str(caught.value)
    assert isinstance(caught.value, msight_bus.BusError)
