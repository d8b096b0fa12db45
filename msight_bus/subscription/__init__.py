"""Subscriptions: the public iterator, its queue, and the detection of missing messages."""

from msight_bus.subscription.sharing import SharedSubscription
from msight_bus.subscription.stats import SubscriptionStats
from msight_bus.subscription.subscription import AckMode, Subscription, SubscriptionOptions, check_seconds

__all__ = [
    "AckMode",
    "SharedSubscription",
    "Subscription",
    "SubscriptionOptions",
    "SubscriptionStats",
    "check_seconds",
]
