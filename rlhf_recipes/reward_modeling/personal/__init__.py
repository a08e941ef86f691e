"""Reward models of one person each, from few ratings."""
