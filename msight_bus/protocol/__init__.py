"""The wire protocols of Redis and NATS, and the envelope of a message. Pure: bytes in, values out; no asyncio, no sockets.

Receiving. Each connection has one `Decoder`, made by ``redis.decoder(max_message_bytes)`` or ``nats.decoder(...)``::

    more = decoder.feed(data, limit=4096)     # takes at most 4,096 frames and replies
    for item in decoder.take():               # in the order of the stream
        if type(item) is tuple:
            address, frames, foreign = item   # a `Segment`: messages of one address
        else:
            item.kind, item.text              # a `Reply`
    while more:                               # the rest, in a later turn of the event loop
        more = decoder.feed(b"")
        ...

``decoder.only(data)`` before that is a short cut for a chunk that is one frame with a known head.

``feed`` raises `ProtocolError` when the peer does not speak the protocol, and its subclass `FrameTooLargeError` when the peer
announces a message over the limit. `Decoder.take` then still returns what came before; the connection has to be closed.

Sending. A function for each command beside the decoder (``redis.publish``, ``nats.subscribe``, ...). Publishing needs a
`TopicCounter` for each topic; ``message_bytes`` of the same module gives the size that the broker's limit applies to.
"""
