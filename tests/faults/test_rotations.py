"""Permissions, passwords and certificates change while messages flow; a ledger accounts for every message."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from msight_bus import AuthenticationError
from msight_bus.events import Disconnected, Reconnected
from tests.support.brokers import Backend, start_broker
from tests.support.certificates import make_certificates
from tests.support.proxy import FaultProxy
from tests.support.reloading import NatsServer
from tests.support.rig import LIVE, QUICKLY, own_broker, seen, until, whole
from tests.support.servers import PREFIX, variables
from tests.support.stream import Events, read, traffic
from tests.support.tls_front import TlsFront

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
live = pytest.mark.parametrize("kind", LIVE)


# -- permissions

_DENIES_NOTHING = 'deny: ["nothing"]'
_DENIES_BOTH = 'deny: ["out", "in"]'
PERMISSIONS = {
    "redis": ["user alice on >secret ~* &* +@all", "user near on >secret ~* &* +@all"],
    "nats": [
        "authorization { users = [",
        '  {user: "alice", password: "secret", permissions: {'
        f'publish: {{allow: [">"], {_DENIES_NOTHING}}}, subscribe: {{allow: [">"], {_DENIES_NOTHING}}}}}}},',
        '  {user: "near", password: "secret"} ] }',
    ],
}


async def permit(kind, broker, *, permitted):
    """Take alice's right to publish on ``out`` and to subscribe to ``in``, or give it back."""
    if kind == "nats":
        change = (_DENIES_BOTH, _DENIES_NOTHING) if permitted else (_DENIES_NOTHING, _DENIES_BOTH)
        await NatsServer(broker).reload(*change)
        return
    with redis.Redis(port=broker.port) as client:
        channels = ["allchannels"] if permitted else ["resetchannels", "&_msight.*", "&other"]
        client.execute_command("ACL", "SETUSER", "alice", *channels)


async def read_to_the_end(messages, taken):
    async for message in messages:
        taken.append(read(message.payload)[1])


@live
async def test_permissions_are_revoked_and_granted_while_messages_flow(kind, book):
    """The publisher raises the refusal, the subscriber reports the gap, the refused subscription ends, and a new one works."""
    with own_broker(kind, PERMISSIONS[kind]) as (broker, backend):

        def member(name, **more):
            credentials = {f"{PREFIX[kind]}USERNAME": name, f"{PREFIX[kind]}PASSWORD": "secret"}
            return Backend(kind, {**backend.env, **credentials}).connect(**QUICKLY, **more)

        async with member("near", events=Events(book.ledgers)) as near, member("alice") as alice:
            async with (
                traffic(alice, near, "out", book.ledgers["out"], pause=0.005) as out,
                traffic(near, near, "in", book.ledgers["in"], pause=0.005) as incoming,
                alice.subscribe("other") as other,
            ):
                for _ in range(3):
                    taken: list[int] = []
                    async with alice.subscribe("in") as messages:
                        reading = asyncio.create_task(read_to_the_end(messages, taken))
                        await until(lambda taken=taken: len(taken) > 30)
                        out.sender.errors.clear()
                        await permit(kind, broker, permitted=False)
                        with pytest.raises(AuthenticationError):
                            async with asyncio.timeout(20):
                                await reading
                    assert taken == list(range(taken[0], taken[-1] + 1))
                    await until(lambda: AuthenticationError in out.sender.errors)
                    with pytest.raises(AuthenticationError):
                        async with alice.subscribe("in"):
                            pass
                    await near.publish("other", b"untouched")
                    async with asyncio.timeout(20):
                        assert (await anext(other)).payload == b"untouched"
                    await permit(kind, broker, permitted=True)
                    book.recovered.append(await out.flows())
                    await incoming.flows()
    account = book.account()
    assert account.announced
    assert account.unknown
    assert whole(account)


# -- a password in a file


def door(kind, password):
    return {
        "redis": f"requirepass {password}",
        "nats": f'authorization {{ user: alice, password: "{password}" }}',
    }[kind]


async def change_password(kind, broker, old, new):
    """The server wants another password from now on, and cuts those who came with the old one."""
    if kind == "nats":  # a reload cuts whom it would not let in again
        await NatsServer(broker).reload(door(kind, old), door(kind, new))
        return
    with redis.Redis(port=broker.port, password=old) as client:
        client.config_set("requirepass", new)
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@live
async def test_a_rotated_password_is_read_from_its_file(kind, book, tmp_path):
    """The password changes at the server first and in the file later."""
    file, events = tmp_path / "password", Events(book.ledgers)
    file.write_text("word0")
    with own_broker(kind, [door(kind, "word0")]) as (broker, _):
        user = {"USERNAME": "alice"} if kind == "nats" else {}
        backend = Backend(kind, variables(kind, broker.port, **user, PASSWORD_FILE=str(file)))
        async with backend.connect(events=events, **QUICKLY) as receiving, backend.connect(**QUICKLY) as sending:
            async with traffic(sending, receiving, "a", book.ledgers["a"], pause=0.005) as flow:
                for number in range(1, 6):
                    events.clear()
                    await change_password(kind, broker, f"word{number - 1}", f"word{number}")
                    await until(lambda: seen(events, Disconnected))
                    file.write_text(f"word{number}")
                    book.recovered.append(await flow.flows())
                    await until(lambda: seen(events, Reconnected))
    assert whole(book.account())


# -- certificates


class Files:
    """The certificates of a server and of its clients, at paths where they can be replaced."""

    def __init__(self, folder):
        self.ca, self.trusted = folder / "ca.pem", folder / "trusted.pem"
        self.server, self.client = folder / "server.pem", folder / "client.pem"
        self.server_key, self.client_key = folder / "server.key", folder / "client.key"

    def replace_servers(self, made, *, trusts):
        """The server's certificate, and the authorities whose clients it takes."""
        shutil.copy(made.server.cert, self.server)
        shutil.copy(made.server.key, self.server_key)
        self.trusted.write_bytes(b"".join(Path(each.ca).read_bytes() for each in trusts))

    def replace_clients(self, made):
        """What this machine has."""
        shutil.copy(made.ca, self.ca)
        shutil.copy(made.client.cert, self.client)
        shutil.copy(made.client.key, self.client_key)

    def variables(self):
        ends = {"CA_CERT_FILE": self.ca, "CERT_FILE": self.client, "KEY_FILE": self.client_key}
        return {"USE_TLS": "true", **{f"TLS_{end}": str(path) for end, path in ends.items()}}


@asynccontextmanager
async def tls_server(kind, files):
    """A broker with TLS that wants the client's certificate; gives its port and what has it read its files anew."""
    if kind == "nats":
        tls = f'tls {{ cert_file: "{files.server}", key_file: "{files.server_key}", ca_file: "{files.trusted}", verify: true }}'
        with start_broker("nats", [tls, "# 0"]) as broker:
            reloads = iter(range(100))

            async def reload():
                number = next(reloads)
                await NatsServer(broker).reload(f"# {number}", f"# {number + 1}")

            yield broker.port, reload
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED

    async def load():
        context.load_cert_chain(files.server, files.server_key)
        context.load_verify_locations(files.trusted)

    await load()
    with start_broker("redis") as broker:
        front = TlsFront(broker.port, context)
        try:
            yield front.port, load
        finally:
            await asyncio.to_thread(front.stop)


@live
async def test_certificates_of_both_sides_are_rotated_while_messages_flow(kind, book, tmp_path):
    """Each new certificate has a new authority; the server uses it before the clients trust the authority."""
    events, files, made = Events(book.ledgers), Files(tmp_path), []
    for number in range(4):
        (tmp_path / f"{number}").mkdir()
        made.append(make_certificates(tmp_path / f"{number}"))
    files.replace_servers(made[0], trusts=made[:1])
    files.replace_clients(made[0])
    async with tls_server(kind, files) as (port, reload), FaultProxy(port) as proxy:
        backend = Backend(kind, variables(kind, proxy.port, **files.variables()))
        async with backend.connect(events=events, **QUICKLY) as receiving, backend.connect(**QUICKLY) as sending:
            async with traffic(sending, receiving, "a", book.ledgers["a"], pause=0.005) as flow:
                for old, new in itertools.pairwise(made):
                    files.replace_servers(new, trusts=[old, new])
                    await reload()
                    await flow.flows()  # open connections go on
                    accepted = proxy.accepted
                    await proxy.reset()
                    await until(lambda accepted=accepted: proxy.accepted > accepted + 5)  # refused, and tried again
                    files.replace_clients(new)
                    book.recovered.append(await flow.flows())
    assert seen(events, Reconnected)
    assert whole(book.account())
