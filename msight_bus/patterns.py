"""Patterns of topics: ``*`` stands for one part, ``>`` at the end for the remaining parts, at least one. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from msight_bus.errors import TopicError
from msight_bus.topics import check_topic, quoted_topic

_WILDCARDS = frozenset("*>")

MAX_NAMED = 3
"""Maximum number of topics that a log line, an error or an announcement names."""

MAX_PATTERNS = 1000
"""Maximum number of patterns of a subscription: each topic that arrives is compared with all of them."""

_ONE_OR_MORE = "Subscribe to a topic, a pattern such as 'camera.*', or a list of them"


def is_pattern(entry: str) -> bool:
    """Return whether an entry of a subscription is a pattern."""
    return not _WILDCARDS.isdisjoint(entry)


def named(entries: Sequence[str], most: int = MAX_NAMED) -> str:
    """Return the first ``most`` entries joined with commas, and the number of the others, for logs and errors."""
    more = f" and {len(entries) - most:,} more" if len(entries) > most else ""
    return ", ".join(entries[:most]) + more


class TopicPattern:
    """A checked pattern.

    Patterns match neither reserved topics nor dead-letter topics.

    Attributes:
        text: the pattern.
    """

    __slots__ = ("_fullmatch", "_parts", "_suffix", "text")

    def __init__(self, text: str, dead_letter_suffix: str) -> None:
        """
        Args:
            text: a pattern that `check_entries` accepted.
            dead_letter_suffix: end of the names of dead-letter topics.
        """
        self.text = text
        self._suffix = dead_letter_suffix
        self._parts = text.split(".")
        parts = {"*": r"[^.]+", ">": r".+"}
        expression = r"\.".join([parts.get(part) or re.escape(part) for part in self._parts])
        self._fullmatch = re.compile(expression, re.DOTALL).fullmatch

    def matches(self, name: str) -> bool:
        """Return whether the pattern matches a name, which need not be a valid topic."""
        return self._fullmatch(name) is not None and not name.startswith("_") and not name.endswith(self._suffix)

    def covers(self, entry: str) -> bool:
        """Return whether the pattern matches everything that ``entry``, a topic or a pattern, matches."""
        if not is_pattern(entry):
            return self.matches(entry)
        if self._fullmatch(entry) is None:  # fast: a subscription compares each of its patterns with all others
            return False
        others = entry.split(".")
        for number, part in enumerate(self._parts):
            if part == ">":
                return len(others) > number
            if number >= len(others) or others[number] == ">" or part not in ("*", others[number]):
                return False
        return len(others) == len(self._parts)

    def __repr__(self) -> str:
        return f"TopicPattern({self.text!r})"


def matcher(entries: Sequence[str], dead_letter_suffix: str) -> Callable[[str], bool]:
    """Return a predicate: whether a topic is one of the ``entries``, or one of their patterns matches the topic."""
    patterns = [TopicPattern(entry, dead_letter_suffix) for entry in entries if is_pattern(entry)]
    return lambda topic: topic in entries or any(pattern.matches(topic) for pattern in patterns)


def check_entries(topics: object) -> tuple[str, ...]:
    """Return the entries of a subscription as a tuple: a topic, a pattern, or a list of topics and patterns.

    Raises:
        TopicError: an entry is not valid or given twice, or there is none; the text names what is accepted.
    """
    if isinstance(topics, str):
        return (_check_entry(topics),)
    if not isinstance(topics, list | tuple):
        raise TopicError(f"{_ONE_OR_MORE}, not {type(topics).__name__}.", topic=topics)
    if not topics:
        raise TopicError(f"The list of topics is empty. {_ONE_OR_MORE}.", topic=topics)
    entries = tuple(_check_entry(entry) for entry in topics)
    if len(set(entries)) < len(entries):
        twice = next(entry for entry in entries if entries.count(entry) > 1)
        raise TopicError(f"{quoted_topic(twice)} is in the list of topics twice; list it once.", topic=twice)
    if (count := sum(map(is_pattern, entries))) > MAX_PATTERNS:
        raise TopicError(
            f"The list has {count:,} patterns; at most {MAX_PATTERNS:,} are accepted. Use wider patterns, such as 'camera.>'.",
            topic=topics,
        )
    return entries


def _check_entry(entry: object) -> str:
    if not isinstance(entry, str) or not is_pattern(entry):
        return check_topic(entry)  # type: ignore[arg-type]
    parts = entry.split(".")
    last = len(parts) - 1
    named = ["x" if part == "*" or (part == ">" and number == last) else part for number, part in enumerate(parts)]
    if wrong := [part for part in named if is_pattern(part)]:
        reason = (
            "'>' stands for all remaining parts and must be the last part"
            if wrong[0] == ">"
            else f"the part {quoted_topic(wrong[0])} is not a whole wildcard; '*' stands for one whole part between dots, "
            "and '>' for all remaining parts"
        )
        raise TopicError(
            f"{quoted_topic(entry)} is not a valid pattern: {reason}. Use '*' or a list. "
            "For example 'camera.*' or ['camera.ne', 'camera.sw'].",
            topic=entry,
        )
    try:
        check_topic(".".join(named))
    except TopicError as error:
        reason = str(error).partition(" is not a valid topic: ")[2]
        raise TopicError(f"{quoted_topic(entry)} is not a valid pattern: {reason}", topic=entry) from None
    return entry
