"""A canary stands wherever a secret may stand, rightly or by mistake, and must never sing."""

from __future__ import annotations

import os
import pickle
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import msight_bus.settings
from msight_bus.errors import ConfigError
from msight_bus.settings import BusSettings, RedisSettings

CANARY = "c4n4ry"
PACKAGE = str(Path(msight_bus.settings.__file__).parent)
VARIABLES = BusSettings.variables()

SECRETS = st.sampled_from([CANARY, f"{CANARY}\udc80", CANARY * 20_000, f"two\nlines {CANARY}"])
WRONG = st.sampled_from(["junk", "0", "-1", "true", "99999999999999999", "a\nb", "\udc80", "['a', 5]", "/none"])
URLS = st.sampled_from(
    [
        f"nats://u:{CANARY}@nats.example:4222",
        f"['nats://{CANARY}@a', 'tls://b']",
        f"['nats://u:{CANARY}@a:99999']",
        f'["ws://u:{CANARY}@a", "nats://b"]',
        f"nats://u:{CANARY}",
        f"u:{CANARY}@a:9092",
        f"{CANARY}@",
        f"['nats://a', '{CANARY}",
        f"https://{CANARY}@a/",
        f"redis://:{CANARY}@a:6379/0",
        f"nats://u:{CANARY}@a," * 300,
    ]
)
KEYS = st.sampled_from([f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n", f"-----BEGIN {CANARY}"])


@st.composite
def environments(draw, files: list[str]) -> dict[str, str]:
    environ: dict[str, str] = {}
    for variable in draw(st.lists(st.sampled_from(VARIABLES), max_size=12, unique=True)):
        name = variable.name
        if variable.secret:
            how = draw(st.sampled_from(["set", "file", "both"]))
            if how != "file":
                environ[name] = draw(SECRETS)
            if how != "set":
                environ[f"{name}_FILE"] = draw(st.sampled_from(files) | SECRETS)
        elif name.endswith(("SERVERS", "CLUSTER_NODES", "HOST")):
            environ[name] = draw(URLS | WRONG)
        elif name.endswith(("_FILE", "USER_CREDENTIALS")):
            environ[name] = draw(KEYS | WRONG | st.sampled_from(files))
        else:
            environ[name] = draw(WRONG)
    return environ


def chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def local_values(frames: TracebackType | None) -> list[str]:
    """What a traceback with local variables would show of our own frames."""
    shown = []
    while frames is not None:
        if frames.tb_frame.f_code.co_filename.startswith(PACKAGE):
            shown += [repr(value) for value in frames.tb_frame.f_locals.values()]
        frames = frames.tb_next
    return shown


@hypothesis_settings(deadline=None, max_examples=300)
@given(st.data(), st.sampled_from(["redis", "nats", "kafka", "memory", "junk", None]))
def test_no_secret_is_ever_shown(data, backend):
    folder = Path(__file__).parent
    environ = data.draw(environments([str(folder), __file__, str(folder / "none")]))
    shown: list[str] = []
    with warnings.catch_warnings(record=True) as caught, mock.patch.dict(os.environ, environ, clear=True):
        warnings.simplefilter("always")
        try:
            settings = BusSettings(backend=backend)
            shown += [str(settings), repr(settings), str(settings.dump()), str(asdict(settings))]
        except ConfigError as error:
            shown += error.problems
            shown += traceback.format_exception(error)
            shown += local_values(error.__traceback__)
            for link in chain(error):
                shown += [str(link), repr(link), str(link.args), str(vars(link)), str(pickle.dumps(link))]
    shown += [f"{warning.message!r} {warning.message} {warning.source}" for warning in caught]
    assert all(CANARY not in text for text in shown)


def test_a_traceback_with_local_variables_shows_no_secret_given_in_code():
    secrets = {"password": CANARY, "port": "x"}
    for make in (
        lambda: RedisSettings(**secrets),
        lambda: BusSettings(environ={"MSIGHT_NATS_TOKEN": CANARY}, redis=secrets),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        assert CANARY not in "".join(local_values(caught.value.__traceback__))
