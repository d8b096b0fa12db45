"""What others send is read, and nothing in it is imported, compiled or run: the interpreter itself would say so (PEP 578)."""

from __future__ import annotations

import contextlib
import json
import sys

import msgpack
import pytest

from msight_bus import Message
from msight_bus.data import decode
from msight_bus.errors import DecodeError
from msight_bus.registry import Registry
from msight_bus.topics import NODES_TOPIC

RUNS = ("import", "exec", "compile", "os.", "subprocess.", "pickle.", "marshal.", "ctypes.", "open", "socket.")
NAMES = [
    "antigravity.Thing",
    "os.system",
    "__import__('antigravity')",
    "builtins.eval",
    "!!python/name:os.system",
    "{0.__class__}",
]

_heard: list[str] = []
_watches = [False]


def _hear(event, arguments):
    if _watches[0] and event.startswith(RUNS):
        _heard.append(f"{event} {arguments!r:.80}")


@pytest.fixture(scope="module", autouse=True)
def hook():
    sys.addaudithook(_hear)  # for ever: an interpreter does not take one back


def heard(read, harmless, *payloads):
    """What the interpreter did while ``read`` read the payloads; what it loads for any payload it loads for the first."""
    read(harmless)
    _heard.clear()
    _watches[0] = True
    try:
        for payload in payloads:
            with contextlib.suppress(DecodeError):
                read(payload)
    finally:
        _watches[0] = False
    return _heard


def test_nothing_in_data_is_run():
    known = "msight_core.data.bytes.BytesData"
    values = [{"data_type": name, "data": b"x", "__class__": name, "py/object": name} for name in NAMES]
    values += [{"data_type": known, "data": b"x", "sensor_name": name, "__reduce__": [name, ["x"]]} for name in NAMES]
    pickled = b"cos\nsystem\n(S'true'\ntR."
    harmless = msgpack.packb({"data_type": known, "data": b"x"})
    assert heard(decode, harmless, pickled, *map(msgpack.packb, values)) == []


def test_nothing_in_an_announcement_is_run():
    registry = Registry(None)
    right = {
        "instance": "1",
        "type": "Sink",
        "device": "d",
        "status": "RUNNING",
        "started_at": 5,
        "heartbeat_interval": 10,
    }
    told = [right | {"name": f"n{number}", "device": name, "class": name} for number, name in enumerate(NAMES)]
    payloads = [json.dumps(one).encode() for one in told]
    assert heard(lambda payload: registry._observe(Message(NODES_TOPIC, payload)), payloads[0], *payloads) == []
    assert {node.device for node in registry} == set(NAMES)


@pytest.mark.parametrize("run", [__import__, lambda text: compile(text, "", "eval"), open])
def test_the_hook_hears(run):
    with contextlib.suppress(ImportError, OSError):
        heard(lambda text: text and run(text), "", "antigravity_of_no_such_name")
    assert _heard
