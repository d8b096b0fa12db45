"""Pure codecs: bytes in, values out; no asyncio and no sockets."""
