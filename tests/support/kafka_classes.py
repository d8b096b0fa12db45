"""Class-data sharing of the JVM: with an archive of its loaded classes, Kafka starts in half the processor time."""

from __future__ import annotations

import os
import signal
import zlib
from pathlib import Path

from msight_bus import brokers
from msight_bus.brokers import kafka, programs, running
from msight_bus.brokers.errors import ServerNotFoundError
from msight_bus.brokers.fetching import cached
from tests.support.waiting import wait_until

_OPTIONS = "JDK_JAVA_OPTIONS"  # read by the Java launcher
_NAME = "kafka.jsa"
_QUIET = "-Xlog:cds=off -Xlog:cds+dynamic=off"  # an archive that does not fit is ignored without a warning in the log


def share_classes() -> None:
    """Let each Java process that this process and its children start use the archive; write the archive if it is missing."""
    try:
        recipe = running.find("kafka", print)
        if recipe.is_stand_in or recipe.in_container:
            return
        java = zlib.crc32(programs.about(kafka._java(), "-version").encode())
        folder = cached(f"kafka-{recipe.version}-classes-{java:08x}", _write)
    except (brokers.NoBrokerError, ServerNotFoundError, brokers.BrokerUnavailableError, TimeoutError):
        return  # the tests that need Kafka tell why it does not start
    os.environ[_OPTIONS] = f"{_QUIET} -XX:SharedArchiveFile={folder / _NAME}"


def _write(folder: Path) -> None:
    """Start a broker that writes the archive when it ends."""
    os.environ[_OPTIONS] = f"{_QUIET} -XX:ArchiveClassesAtExit={folder / _NAME}"
    try:
        with brokers.start("kafka", deadline=120.0) as broker:
            os.kill(broker.pid, signal.SIGTERM)
            wait_until(lambda: not broker.is_alive, within=60.0)
    finally:
        del os.environ[_OPTIONS]
