from __future__ import annotations

import os
import shlex
import stat
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from msight_bus.settings import HostPort, NatsServer, kinds
from msight_bus.settings.kinds import Kind, choice, whole

JUNK = st.none() | st.text() | st.floats() | st.integers() | st.binary() | st.lists(st.text()) | st.booleans()


def parser(annotation) -> Kind:
    return next(mark for mark in get_args(annotation) if isinstance(mark, Kind))


def parse(annotation, value):
    return parser(annotation).read(value)


KINDS = [
    kinds.Flag,
    kinds.Port,
    kinds.Count,
    kinds.CountOrZero,
    kinds.Bytes,
    kinds.Seconds,
    kinds.Name,
    kinds.LogLevel,
    kinds.Host,
    kinds.ReadableFile,
    kinds.SocketPath,
    kinds.Secret,
    kinds.HostPorts,
    kinds.NatsServers,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: parser(kind).accepts)
@given(value=JUNK)
def test_a_parser_gives_a_value_or_a_value_error(kind, value):
    try:
        parsed = parse(kind, value)
    except ValueError:
        return
    assert parse(kind, parsed) == parsed


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not kinds.ReadableFile])
def test_the_example_is_accepted(kind):
    assert parse(kind, parser(kind).example) is not None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not kinds.ReadableFile])
def test_the_example_can_be_pasted_into_a_shell(kind):
    assert shlex.split(parser(kind).example) == [parser(kind).example]


@given(st.sampled_from(["true", "1", "yes"]), st.sampled_from(["false", "0", "no"]), st.randoms())
def test_booleans_in_any_case(yes, no, random):
    def mixed(word):
        return "".join(random.choice((letter.lower(), letter.upper())) for letter in word)

    assert parse(kinds.Flag, mixed(yes)) is True
    assert parse(kinds.Flag, f" {mixed(no)} ") is False


@pytest.mark.parametrize("value", ["on", "off", "y", "n", "t", "2", "", "truee", "01", "none", 1, 0, None])
def test_nothing_else_is_a_boolean(value):
    with pytest.raises(ValueError, match=r"^$"):
        parse(kinds.Flag, value)


@given(st.integers(1, 65535))
def test_ports(port):
    assert parse(kinds.Port, str(port)) == parse(kinds.Port, f" {port} ") == parse(kinds.Port, port) == port


@pytest.mark.parametrize(
    "value", ["0", "65536", "-1", "+1", "1.0", "1e3", "0x10", "1_0", "", "٣", "9" * 5000, True, 1.0, None]
)
def test_nothing_else_is_a_port(value):
    with pytest.raises(ValueError, match=r"^$"):
        parse(kinds.Port, value)


def test_whole_states_its_bounds():
    kind = whole(3, 5, "4")
    assert kind.accepts == "a whole number from 3 to 5"
    assert [kind.parse(text) for text in ("3", "5")] == [3, 5]
    for text in ("2", "6"):
        with pytest.raises(ValueError, match=r"^$"):
            kind.parse(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2.5", 2.5), ("1", 1.0), ("1e-3", 0.001), (" 86400 ", 86400.0), (3, 3.0)]
)
def test_seconds(text, seconds):
    assert parse(kinds.Seconds, text) == seconds


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "86400.1", "1s", "", True, None, 10**400, b"1", [1]])
def test_nothing_else_is_a_number_of_seconds(value):
    with pytest.raises(ValueError, match=r"^$"):
        parse(kinds.Seconds, value)


def test_choices_in_any_case_give_the_word_as_it_is_written():
    kind = choice("PLAIN", "SCRAM-SHA-256", example="PLAIN")
    assert kind.parse(" scram-sha-256 ") == "SCRAM-SHA-256"
    assert kind.accepts == "one of PLAIN, SCRAM-SHA-256"
    with pytest.raises(ValueError, match=r"^$"):
        kind.parse("SCRAM")


@pytest.mark.parametrize("value", ["", "a\nb", "a\x00", "x" * 70_000, None, 5])
def test_what_is_no_name(value):
    with pytest.raises(ValueError, match=r"^$|printed"):
        parse(kinds.Name, value)


def test_secrets_are_wrapped():
    assert parse(kinds.Secret, "s3cret\n").get_secret_value() == "s3cret\n"
    assert parse(kinds.Secret, SecretStr("x")).get_secret_value() == "x"


@pytest.mark.parametrize("value", ["", "x" * 70_000, "\udc80", SecretStr(""), 5, b"x", None])
def test_what_is_no_secret(value):
    with pytest.raises(ValueError, match=r"^$|UTF-8"):
        parse(kinds.Secret, value)


def test_files_must_exist_and_be_readable(tmp_path):
    file = tmp_path / "ca.pem"
    file.write_text("x")
    assert parse(kinds.ReadableFile, str(file)) == parse(kinds.ReadableFile, file) == str(file)
    for path in (tmp_path, tmp_path / "none", "x" * 5000, "a\0b", "", None, 5):
        with pytest.raises(ValueError, match=r"^$|no such file|printed"):
            parse(kinds.ReadableFile, path)


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path):
    file = tmp_path / "key.pem"
    file.write_text("x")
    file.chmod(stat.S_IWUSR)
    with pytest.raises(ValueError, match="may not read"):
        parse(kinds.ReadableFile, str(file))


def test_socket_paths_fit_into_an_address():
    assert parse(kinds.SocketPath, "/" + "a" * 106) == "/" + "a" * 106
    for path in ("/" + "a" * 107, "/" + "ä" * 60, "a\0", ""):
        with pytest.raises(ValueError, match=r"^$|printed"):
            parse(kinds.SocketPath, path)


def test_lists_take_text_and_values():
    both = (HostPort("a", 1), HostPort("b", 2))
    for value in ("a:1,b:2", ["a:1", "b:2"], ("a:1", HostPort("b", 2)), both, SecretStr("['a:1', 'b:2']")):
        assert parse(kinds.HostPorts, value) == both
    assert parse(kinds.NatsServers, ["nats://a"]) == (NatsServer("a", 4222),)


@pytest.mark.parametrize("value", [[], None, 5, {"a:1"}, ["a"], [5], ["a:1"] * 257, ["a:1", ""], "a:1,b"])
def test_what_is_no_list(value):
    with pytest.raises(ValueError, match=r"it is empty|entry|entries"):
        parse(kinds.HostPorts, value)


def test_the_wrong_entry_is_numbered():
    with pytest.raises(ValueError, match="entry 2: it has no port"):
        parse(kinds.HostPorts, "a:1, b, c:2")
