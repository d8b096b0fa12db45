"""A payload that comes in many small chunks takes little more memory than its bytes."""

from __future__ import annotations

from msight_bus.protocol import stream_decoder
from msight_bus.protocol.stream_decoder import DecodeBuffer


def test_the_parts_of_a_payload_are_joined_now_and_then(monkeypatch):
    monkeypatch.setattr(stream_decoder, "_PARTS", 10)
    reading = DecodeBuffer()
    sent = bytes(range(256)) * 2
    reading.begin((b"a", None, b""), b"head" + sent[:1], 4, len(sent) + 1)
    for i in range(1, len(sent)):
        assert reading.fill(sent[i : i + 1]) is None
        assert len(reading._parts) <= 10
    assert reading.fill(b"\r") is None
    assert reading.fill(b"\n") == (b"a", None, b"", sent)
    assert reading._parts == []
