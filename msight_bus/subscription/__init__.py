"""Subscriptions: the public iterator, the queue behind it, and the detection of missing messages."""

from msight_bus.subscription.sharing import SharedSubscription
from msight_bus.subscription.stats import SubscriptionStats
from msight_bus.subscription.subscription import AckMode, Batches, Subscription, Terms, check_seconds

__all__ = ["AckMode", "Batches", "SharedSubscription", "Subscription", "SubscriptionStats", "Terms", "check_seconds"]
