"""Who produces completions, from which distribution, and where a completion ends."""

from rlhf_recipes.modeling.generation.config import (
    DECIDED,
    WARPERS,
    distortions,
    sampling_config,
    warn_of_distortions,
)
from rlhf_recipes.modeling.generation.copies import PRECISIONS, SamplingCopy, check_precision
from rlhf_recipes.modeling.generation.draw import DRAW, KeyedDraw
from rlhf_recipes.modeling.generation.ends import StopAtString, completion_mask
from rlhf_recipes.modeling.generation.local import LocalGenerator, without_defaults
from rlhf_recipes.modeling.generation.written import (
    Generated,
    Generator,
    Tokens,
    Written,
    pad_left,
    pad_right,
    prompt_lists,
    stable_key,
    token_lists,
    unpadded,
    write,
)

__all__ = [
    "DECIDED",
    "DRAW",
    "WARPERS",
    "Generated",
    "Generator",
    "KeyedDraw",
    "LocalGenerator",
    "PRECISIONS",
    "SamplingCopy",
    "check_precision",
    "StopAtString",
    "Tokens",
    "Written",
    "completion_mask",
    "distortions",
    "pad_left",
    "pad_right",
    "prompt_lists",
    "sampling_config",
    "stable_key",
    "token_lists",
    "unpadded",
    "warn_of_distortions",
    "without_defaults",
    "write",
]
