"""Proximal policy optimization for language models."""

import importlib
from typing import Any

from rlhf_recipes.ppo import renamed

__all__ = ["PPOConfig", "PPOTrainer"]


def __getattr__(name: str) -> Any:
    # At first use, so that whoever needs only the arithmetic of functional.py imports nothing but torch.
    if name in renamed.REMOVED:
        renamed.removed(name)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{'config' if name == 'PPOConfig' else 'trainer'}"), name)
