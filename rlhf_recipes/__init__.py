"""RLHF fine-tuning recipes on the Hugging Face stack: reward models, PPO and their relatives."""

import os

# Hugging Face libraries read this once, at their first import; a user who has set it keeps their choice.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
