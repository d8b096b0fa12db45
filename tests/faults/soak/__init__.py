"""Faults at random, for as long as one likes: ``make soak BACKEND=redis SECONDS=900 SEED=1``."""
