"""Proximal policy optimization for language models."""

from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
