from __future__ import annotations

import pytest

from msight_bus.data import Data, SensorData, decode
from msight_bus.data.tags import class_of
from msight_bus.errors import ConfigError


class Plain(SensorData):
    speed: float = 0.0


class Named(SensorData, tag="tests.named"):
    speed: float = 0.0


def test_the_default_tag_is_module_and_qualname_as_in_msight():
    assert Plain().to_dict()["data_type"] == f"{__name__}.Plain"
    assert class_of(f"{__name__}.Plain") is Plain


def test_an_explicit_tag_replaces_the_default():
    assert class_of("tests.named") is Named
    assert class_of(f"{__name__}.Named") is None


def test_a_tag_has_one_class_and_the_error_names_both():
    with pytest.raises(ConfigError, match=r"tests\.named.*Thief.*test_tags\.Named") as caught:

        class Thief(Data, tag="tests.named"):
            pass

    assert "my_project.Thief" in str(caught.value)
    assert class_of("tests.named") is Named


def test_a_class_that_is_defined_again_replaces_the_old_one():
    """A notebook cell that runs twice, a module that is reloaded."""

    def define():
        class Cell(Data):
            value: int = 0

        return Cell

    old, new = define(), define()
    assert old is not new
    assert type(decode(new(value=3).serialize())) is new


def test_subclasses_of_subclasses_get_tags_of_their_own():
    class Faster(Named):
        pass

    assert type(decode(Faster(speed=2.0).serialize())) is Faster
    assert type(decode(Named(speed=2.0).serialize())) is Named


@pytest.mark.parametrize(
    "options",
    [
        {"array_like": True},
        {"tag_field": "kind"},
        {"tag": 7},
        {"tag": True},
        {"tag": str.lower},
        {"tag": ""},
        {"tag": "x" * 256},
        {"tag": "ü" * 128},
        {"tag": "\ud800"},
        {"tag": "a\nb"},
        {"rename": {"value": "data_type"}},
    ],
    ids=str,
)
def test_options_that_no_reader_can_decode_are_refused_when_the_class_is_defined(options):
    with pytest.raises(ConfigError, match="Odd"):

        class Odd(Data, **options):
            value: int = 0


def test_a_field_named_as_the_tag_is_refused():
    with pytest.raises(ConfigError, match="data_type"):

        class Odd(Data):
            data_type: str = ""


@pytest.mark.parametrize(
    "options", [{"tag": "x" * 255}, {"frozen": True}, {"rename": "camel"}, {"omit_defaults": True}], ids=str
)
def test_other_options_make_no_difference_to_a_reader(options):
    options = {"tag": f"tests.{min(options)}", **options}

    class Fine(Data, **options):
        some_value: int = 0

    assert Data.deserialize(Fine(some_value=3).serialize()) == Fine(some_value=3)
