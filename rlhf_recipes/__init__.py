"""RLHF fine-tuning recipes on the Hugging Face stack: reward models, PPO and their relatives."""

import os
from typing import Any

from rlhf_recipes.starting import startup

# Hugging Face libraries read this once, at their first import; a user who has set it keeps their choice.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Read once too, when torch starts its threads. By default they wait for each other by spinning for long, which takes
# the core that another program needs: beside one busy program a run then took twice as long as with threads that soon
# sleep. On an idle machine the difference was below 10%.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
startup.prepare()
__version__ = "0.1.0"
__all__ = ["PPOConfig", "PPOTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    # At first use: `import rlhf_recipes` alone must stay cheap, and come before any Hugging Face import.
    from rlhf_recipes.ppo import renamed

    if name in renamed.REMOVED:
        renamed.removed(name)
    if name not in ("PPOConfig", "PPOTrainer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rlhf_recipes import ppo

    return getattr(ppo, name)
