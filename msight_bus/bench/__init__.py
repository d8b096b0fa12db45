"""Measure a publisher and a subscriber in separate processes; used by `msight-bus bench` and `benchmarks`.

A `Side` names a publisher or a subscriber. `Runner` runs one of each against a broker and returns their records.
"""
