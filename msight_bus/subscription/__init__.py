"""Subscriptions: the public iterator, its queue, and the detection of missing messages."""

from msight_bus.subscription.sharing import SharedSubscription
from msight_bus.subscription.stats import SubscriptionStats, TopicStats
from msight_bus.subscription.subscription import AckMode, Batches, Subscription, SubscriptionOptions, check_seconds

__all__ = [
    "AckMode",
    "Batches",
    "SharedSubscription",
    "Subscription",
    "SubscriptionOptions",
    "SubscriptionStats",
    "TopicStats",
    "check_seconds",
]
