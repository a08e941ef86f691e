"""Reward models that can be read: named features, one weight each."""
