from __future__ import annotations

import os
import shlex
import stat
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.settings import HostPort, NatsServer, Secret, value_types
from msight_bus.settings.value_types import choice, whole

JUNK = st.none() | st.text() | st.floats() | st.integers() | st.binary() | st.lists(st.text()) | st.booleans()


TYPES = [
    value_types.FLAG,
    value_types.PORT,
    value_types.COUNT,
    value_types.COUNT_OR_ZERO,
    value_types.BYTES,
    value_types.SECONDS,
    value_types.NAME,
    choice(Literal["CRITICAL", "INFO"], "INFO"),
    value_types.HOST,
    value_types.PEM_FILE,
    value_types.SOCKET_PATH,
    value_types.SECRET,
    value_types.HOST_PORTS,
    value_types.NATS_SERVERS,
]


@pytest.mark.parametrize("value_type", TYPES, ids=lambda value_type: value_type.accepts)
@given(value=JUNK)
def test_a_parser_gives_a_value_or_a_value_error(value_type, value):
    try:
        parsed = value_type.parse(value)
    except ValueError:
        return
    assert value_type.parse(parsed) == parsed


@pytest.mark.parametrize("value_type", [value_type for value_type in TYPES if value_type is not value_types.PEM_FILE])
def test_the_example_is_accepted(value_type):
    assert value_type.parse(value_type.example) is not None


@pytest.mark.parametrize("value_type", [value_type for value_type in TYPES if value_type is not value_types.PEM_FILE])
def test_the_example_can_be_pasted_into_a_shell(value_type):
    assert shlex.split(value_type.example) == [value_type.example]


@given(st.sampled_from(["true", "1", "yes"]), st.sampled_from(["false", "0", "no"]), st.randoms())
def test_booleans_in_any_case(yes, no, random):
    def mixed(word):
        return "".join(random.choice((letter.lower(), letter.upper())) for letter in word)

    assert value_types.FLAG.parse(mixed(yes)) is True
    assert value_types.FLAG.parse(f" {mixed(no)} ") is False


@pytest.mark.parametrize("value", ["on", "off", "y", "n", "t", "2", "", "truee", "01", "none", 1, 0, None])
def test_nothing_else_is_a_boolean(value):
    with pytest.raises(ValueError, match=r"^$"):
        value_types.FLAG.parse(value)


@given(st.integers(1, 65535))
def test_ports(port):
    assert (
        value_types.PORT.parse(str(port)) == value_types.PORT.parse(f" {port} ") == value_types.PORT.parse(port) == port
    )


@pytest.mark.parametrize(
    "value", ["0", "65536", "-1", "+1", "1.0", "1e3", "0x10", "1_0", "", "٣", "9" * 5000, True, 1.0, None]
)
def test_nothing_else_is_a_port(value):
    with pytest.raises(ValueError, match=r"^$"):
        value_types.PORT.parse(value)


def test_whole_states_its_bounds():
    value_type = whole(3, 5, "4")
    assert value_type.accepts == "a whole number from 3 to 5"
    assert [value_type.parse(text) for text in ("3", "5")] == [3, 5]
    for text in ("2", "6"):
        with pytest.raises(ValueError, match=r"^$"):
            value_type.parse(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2.5", 2.5), ("1", 1.0), ("1e-3", 0.001), (" 86400 ", 86400.0), (3, 3.0)]
)
def test_seconds(text, seconds):
    assert value_types.SECONDS.parse(text) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "-1",
        "nan",
        "inf",
        "86400.1",
        "1s",
        "",
        "٣",
        "1_0",
        "1e-320",
        "1e-4",
        1e-320,
        "0x1",
        "1.2.3",
        True,
        None,
        10**400,
        "0" * 100 + "1",  # matching would take quadratic time
        b"1",
        [1],
    ],
)
def test_nothing_else_is_a_number_of_seconds(value):
    with pytest.raises(ValueError, match=r"^$"):
        value_types.SECONDS.parse(value)


def test_choices_in_any_case_give_the_word_as_it_is_written():
    value_type = choice(Literal["PLAIN", "SCRAM-SHA-256"], "PLAIN")
    assert value_type.parse(" scram-sha-256 ") == "SCRAM-SHA-256"
    assert value_type.accepts == "one of PLAIN, SCRAM-SHA-256"
    with pytest.raises(ValueError, match=r"^$"):
        value_type.parse("SCRAM")


@pytest.mark.parametrize("value", ["", "a\nb", "a\x00", "x" * 70_000, None, 5])
def test_what_is_no_name(value):
    with pytest.raises(ValueError, match=r"^$|unprintable"):
        value_types.NAME.parse(value)


def test_secrets_are_wrapped():
    assert value_types.SECRET.parse("s3cret\n").get_secret_value() == "s3cret\n"
    assert value_types.SECRET.parse(Secret("x")).get_secret_value() == "x"


@pytest.mark.parametrize("value", ["", "x" * 70_000, "\udc80", Secret(""), 5, b"x", None])
def test_what_is_no_secret(value):
    with pytest.raises(ValueError, match=r"^$|UTF-8"):
        value_types.SECRET.parse(value)


def test_files_must_exist_and_be_readable(tmp_path):
    file = tmp_path / "ca.pem"
    file.write_text("x")
    assert value_types.PEM_FILE.parse(str(file)) == value_types.PEM_FILE.parse(file) == str(file)
    for path in (tmp_path, tmp_path / "none", "x" * 5000, "a\0b", "", None, 5):
        with pytest.raises(ValueError, match=r"^$|no such file|unprintable"):
            value_types.PEM_FILE.parse(path)


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path):
    file = tmp_path / "key.pem"
    file.write_text("x")
    file.chmod(stat.S_IWUSR)
    with pytest.raises(ValueError, match="has no permission"):
        value_types.PEM_FILE.parse(str(file))


def test_socket_paths_fit_into_an_address():
    assert value_types.SOCKET_PATH.parse("/" + "a" * 106) == "/" + "a" * 106
    for path in ("/" + "a" * 107, "/" + "ä" * 60, "a\0", ""):
        with pytest.raises(ValueError, match=r"^$|unprintable"):
            value_types.SOCKET_PATH.parse(path)


def test_lists_take_text_and_values():
    both = (HostPort("a", 1), HostPort("b", 2))
    for value in ("a:1,b:2", ["a:1", "b:2"], ("a:1", HostPort("b", 2)), both, "['a:1', 'b:2']"):
        assert value_types.HOST_PORTS.parse(value) == both
    assert value_types.NATS_SERVERS.parse(["nats://a"]) == (NatsServer("a", 4222),)


@pytest.mark.parametrize(
    "value",
    [[], None, 5, {"a:1"}, ["a"], [5], ["a:1"] * 257, ["a:1", ""], "a:1,b", [HostPort("a", 0)], [HostPort("a b", 1)]],
)
def test_what_is_no_list(value):
    with pytest.raises(ValueError, match=r"it is empty|it is not a list|entry|entries"):
        value_types.HOST_PORTS.parse(value)


def test_the_wrong_entry_is_numbered():
    with pytest.raises(ValueError, match="entry 2: it has no port"):
        value_types.HOST_PORTS.parse("a:1, b, c:2")
