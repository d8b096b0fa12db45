"""The counters that a subscription gives out."""

from __future__ import annotations

import dataclasses

import pytest

from msight_bus.subscription import SubscriptionStats


def test_the_statistics_are_a_frozen_snapshot():
    stats = SubscriptionStats(4, 1, {"latest": 2}, 0, None, 0, 1, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.received = 5
    assert (stats.received, stats.delivered, stats.queued, stats.queued_peak) == (4, 1, 1, 3)
