"""What is remembered of heads that repeat."""

from __future__ import annotations

from msight_bus.protocol import head_cache
from msight_bus.protocol.head_cache import HeadCache, Shape


def test_a_bounded_number_of_heads_is_remembered_and_the_last_ones_are(monkeypatch):
    monkeypatch.setattr(head_cache, "_HEADS", 10)
    cache = HeadCache(lambda head_bytes, payload_bytes: Shape(head_bytes + payload_bytes, None, None))
    for i in range(100):
        for _ in range(2):
            cache.learn(b"a", b"%d" % i, 1)
        address, shape = cache.known[b"%d" % i]
        assert (address, shape.size) == (b"a", len(b"%d" % i) + 1)
        assert len(cache.known) <= 10
        assert len(cache._once) <= 10
    assert b"98" in cache.known
