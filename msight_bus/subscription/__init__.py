"""What a subscriber has: its view of the stream, the queue behind it, and what was missed."""

from msight_bus.subscription.stats import SubscriptionStats
from msight_bus.subscription.subscription import AckMode, Batches, Subscription, Terms, check_seconds

__all__ = ["AckMode", "Batches", "Subscription", "SubscriptionStats", "Terms", "check_seconds"]
