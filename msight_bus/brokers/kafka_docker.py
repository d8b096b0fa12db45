"""Apache Kafka in Docker, from the image of the Apache project."""

from __future__ import annotations

from msight_bus.brokers import programs
from msight_bus.brokers.errors import BrokerUnavailableError, ServerNotFoundError
from msight_bus.brokers.fetching import run
from msight_bus.brokers.kafka_node import VERSION, cluster_id, properties, speaks
from msight_bus.brokers.ports import free_port
from msight_bus.brokers.recipe import HOST, Instance, Recipe, Report

_IMAGE = f"apache/kafka:{VERSION}"
_EVERYWHERE = "0.0.0.0"  # noqa: S104  # in the container; Docker publishes the port on loopback only
_ENV_NAME = str.maketrans({".": "_", "_": "__", "-": "___"})  # how the image names properties in the environment


def find(report: Report) -> Recipe:
    """Return the recipe.

    Raises:
        ServerNotFoundError: no Docker engine answers, or the image cannot be pulled.
    """
    docker = programs.on_path("docker")
    programs.output(docker, "version", "--format", "{{.Server.Version}}")
    try:
        programs.output(docker, "image", "inspect", _IMAGE)
    except ServerNotFoundError:
        report(f"pulling the image {_IMAGE}")
        run([docker, "pull", "--quiet", _IMAGE], report)
    return Recipe("Apache Kafka", VERSION, _commands, speaks, in_container=True)


def _commands(instance: Instance) -> list[list[str]]:
    if instance.arguments:
        raise BrokerUnavailableError(
            f"Kafka in Docker formats its storage itself and accepts no arguments, not {instance.arguments}; remove them"
        )
    controller = free_port()
    node = properties(bind=_EVERYWHERE, advertise=HOST, port=instance.port, controller=controller)
    node["controller.quorum.voters"] = f"1@{HOST}:{controller}"
    node |= dict(line.split("=", 1) for line in instance.extra_lines())
    name = instance.directory.name
    create = ["docker", "create", "--name", name, "--publish", f"{HOST}:{instance.port}:{instance.port}"]
    create += ["--env", f"CLUSTER_ID={cluster_id()}"]
    for key, value in node.items():
        create += ["--env", f"KAFKA_{key.translate(_ENV_NAME).upper()}={value}"]
    return [[*create, _IMAGE], ["docker", "start", "--attach", name]]
