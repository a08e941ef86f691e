"""Completions from vLLM's own server, which is given each rollout's policy."""
