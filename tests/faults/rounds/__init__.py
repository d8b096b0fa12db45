"""Faults of an operator, a network and other members on Kafka, a number of rounds each, with a ledger of every message."""
