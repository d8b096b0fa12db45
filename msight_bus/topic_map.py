"""``MSIGHT_TOPIC_MAP``: topics of this program whose names on the broker are not valid topics. Pure.

`Core` and `Inbox` translate: the code above uses topics, the backends use names on the broker.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from msight_bus.errors import ConfigError, TopicError
from msight_bus.topics import check_topic, quoted_topic

_LONGEST_TEXT = 1024 * 1024
_MOST_ENTRIES = 10_000
_NAME = re.compile(r"(?!_msight\.)[^\ud800-\udfff]{1,200}", re.DOTALL)


class TopicMap:
    """Maps names on the broker to topics. A topic that the map does not contain has the same name on the broker. Immutable."""

    def __init__(self, entries: Iterable[tuple[str, str]] = ()) -> None:
        """
        Args:
            entries: pairs of a name on the broker and a topic.
        """
        self.entries = tuple(entries)
        self._topics = dict(self.entries)
        self._on_broker = {topic: name for name, topic in self.entries}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TopicMap) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    def __repr__(self) -> str:
        return f"TopicMap({self._topics})"

    def on_broker(self, topic: str) -> str:
        """Return the name of a topic on the broker.

        Raises:
            TopicError: ``topic`` is a name on the broker that is mapped to another topic.
        """
        name = self._on_broker.get(topic)
        if name is None and topic in self._topics:
            raise TopicError(
                f"MSIGHT_TOPIC_MAP maps the name {quoted_topic(topic)} on the broker to the topic "
                f"{quoted_topic(self._topics[topic])}; use that topic.",
                topic=topic,
            )
        return name or topic

    def topic_of(self, name: str) -> str:
        """Return the topic whose name on the broker is ``name``; ``name`` itself if the map does not contain it."""
        return self._topics.get(name, name)

    def check_for(self, broker: str, accepted: re.Pattern[str], text: str) -> None:
        """Check that a broker accepts the names; ``text`` describes those that it accepts.

        Raises:
            ConfigError: the broker does not accept a name.
        """
        problems = [
            f"MSIGHT_TOPIC_MAP must name topics of {broker}, {text}, not {quoted_topic(name)}."
            for name in self._topics
            if not accepted.fullmatch(name)
        ]
        if problems:
            raise ConfigError(problems)


def parse_topic_map(value: Any) -> TopicMap:
    """Return the map of a JSON text or a mapping.

    Raises:
        ValueError: the value is not a map of names to topics; the text gives the reason.
    """
    if isinstance(value, TopicMap):
        return value
    pairs: object = tuple(value.items()) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        if len(value) > _LONGEST_TEXT:
            raise ValueError(f"it has more than {_LONGEST_TEXT:,} characters")
        try:
            pairs = json.loads(value, object_pairs_hook=tuple)  # pairs show a name that is given twice
        except (ValueError, RecursionError):
            raise ValueError("it is not JSON") from None
    if not isinstance(pairs, tuple):
        raise ValueError("it is not an object")  # noqa: TRY004 - every wrong value is a ValueError
    if len(pairs) > _MOST_ENTRIES:
        raise ValueError(f"it has more than {_MOST_ENTRIES:,} entries")
    for name, topic in pairs:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{name!r:.60} is not a text of 1 to 200 characters, or is reserved for the bus")
        try:
            check_topic(topic)
        except TopicError as error:
            raise ValueError(str(error).removesuffix(".")) from None
    for names in zip(*pairs, strict=True):
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{count} entries have the name {quoted_topic(name)}")
    return TopicMap(pairs)
