"""Ceilings: the smallest correct code that transfers the same bytes and metadata, the upper limit in Python.

A ceiling has a protocol, a deque and an async iterator; it does not reconnect, limit, count or handle most errors.
"""
