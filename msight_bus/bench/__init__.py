"""Measures a publisher and a subscriber in separate processes; `msight-bus bench` measures the bus on the user's broker.

A `Side` names a publisher or a subscriber. `Runner` runs one of each against a broker and returns what each of them recorded.
"""
