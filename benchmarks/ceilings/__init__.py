"""The smallest correct code that moves the same bytes and metadata: what a machine and a broker can give in Python.

No reconnection, no bounds, no accounting, no errors but the loudest: only the protocol, a deque and an async iterator.
"""
