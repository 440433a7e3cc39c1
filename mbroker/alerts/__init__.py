"""Subscriptions to metrics: people say what they want to be told of, and are told once when it begins and ends."""

from .language import Subscription, SubscriptionError

__all__ = ["Subscription", "SubscriptionError"]
