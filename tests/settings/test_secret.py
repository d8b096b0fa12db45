"""A secret shows itself to nothing but ``get_secret_value``."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict

import msgspec
import pytest

from msight_bus.errors import ConfigError
from msight_bus.settings import BusSettings, NatsServer, Secret
from msight_bus.settings.secret import SecretFile

SECRET = Secret("CANARY")


@pytest.mark.parametrize("secret", [SECRET, SecretFile("X_FILE", "/CANARY")], ids=["text", "file"])
def test_it_is_not_shown(secret):
    assert "CANARY" not in f"{secret} {secret!r} {[secret]} {json.dumps(secret, default=str)}"
    assert not hasattr(secret, "__dict__")
    for encode in (msgspec.json.encode, msgspec.msgpack.encode, json.dumps, msgspec.to_builtins):
        with pytest.raises(TypeError) as caught:
            encode(secret)
        assert "CANARY" not in str(caught.value)


def test_it_is_compared_by_its_value_and_hashed():
    assert Secret("CANARY") == SECRET != Secret("other")
    assert len({SECRET, Secret("CANARY"), Secret("other")}) == 2
    assert SECRET != "CANARY"
    assert Secret("/x") != SecretFile("X_FILE", "/x") != Secret("/x")


def test_it_is_copied_but_not_pickled():
    assert copy.copy(SECRET) == copy.deepcopy([SECRET])[0] == SECRET
    for held in (SECRET, NatsServer("a", 1, user_info=SECRET), BusSettings(environ={}, nats={"token": "CANARY"})):
        with pytest.raises(TypeError, match="A Secret cannot be pickled") as caught:
            pickle.dumps(held)
        assert "CANARY" not in str(caught.value)


def test_a_secret_in_a_file_is_pickled_as_its_path(tmp_path):
    path = tmp_path / "token"
    path.write_text("CANARY")
    settings = BusSettings(environ={"MSIGHT_NATS_TOKEN_FILE": str(path)})
    pickled = pickle.dumps(settings)
    assert b"CANARY" not in pickled
    loaded = pickle.loads(pickled)
    assert loaded == settings
    assert loaded.nats.token.get_secret_value() == "CANARY"
    path.unlink()
    with pytest.raises(ConfigError, match="MSIGHT_NATS_TOKEN_FILE must be the path"):
        loaded.nats.token.get_secret_value()


def test_a_copy_of_all_fields_keeps_the_secrets():
    settings = BusSettings(environ={"MSIGHT_NATS_TOKEN": "CANARY"})
    assert BusSettings(environ={}, **asdict(settings)) == settings
