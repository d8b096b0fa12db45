"""Encoding and decoding of the Redis and NATS protocols and of the message envelope. Pure: no asyncio, no sockets.

Decoding. Each connection has one `Decoder`, made by ``redis.decoder(max_message_bytes)`` or ``nats.decoder(...)``::

    more = decoder.feed(data, limit=4096)     # decodes at most 4,096 frames and replies
    for item in decoder.take():               # in the order of the stream
        if type(item) is not tuple:
            item.kind, item.text              # a `Reply`
        elif len(item) == 3:
            address, frames, undecoded = item   # a `Segment`: messages of one address
        else:
            addresses, frames = item          # a `Series`: only with `keep_order`
    while more:                               # the rest, in a later event loop iteration
        more = decoder.feed(b"")
        ...

``decoder.single(data)``, called first, is a fast path for data that is exactly one frame with a known head.

``feed`` raises `ProtocolError` when the peer does not speak the protocol, and its subclass `FrameTooLargeError` when the peer
announces a message over the limit. `Decoder.take` then still returns the items before; the caller has to close the connection.

Encoding. One function for each command, in the same module as the decoder (``redis.publish``, ``nats.subscribe``, ...).
Publishing needs a `TopicCounter` for each topic. A connection uses a module through one `Codec` (``redis.CODEC``,
``redis.RAW_CODEC``, ``nats.CODEC``).
"""
