"""What personal heads read of a trained reward model: the hidden vector below its head."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_recipes.modeling.frozen import HEADS
from rlhf_recipes.modeling.reading import forward, length_batches
from rlhf_recipes.reward_modeling.linear.groups import Feature, Reading
from rlhf_recipes.reward_modeling.linear.learned_groups import Vectors
from rlhf_recipes.rewards.learned import LearnedReward


@dataclass(frozen=True)
class HiddenFeatures(Vectors):
    """The hidden vector below the head of a reward model, `h(x)` of `score = w.h(x) + b`.

    Of an encoder it is what its classifier's last layer is given, of a decoder the state of the last token. It was
    trained to tell good texts from bad ones, and has forgotten some of the rest: where tastes are about other things,
    an [`~rlhf_recipes.reward_modeling.linear.learned_groups.Embedding`] beside it knows more.

    Args:
        model (`str`):
            The folder or Hub id of a reward model, as `recipes/reward.py` makes it. It is not copied into what is
            saved.
        chat_template_kwargs (`dict`, *optional*):
            What the model's chat template is given besides what it was trained with.
        batch_size (`int`, *optional*, defaults to 32):
            Texts in one forward pass.
    """

    model: str
    chat_template_kwargs: dict[str, Any] | None = None
    batch_size: int = 32
    size: int = 0

    @property
    def features(self) -> tuple[Feature, ...]:
        meaning = f"one of {self.size} numbers that the head of {self.model} reads"
        return tuple(Feature(f"hidden[{index}]", meaning, "of a hidden vector") for index in range(self.size))

    def vectors(self, readings: Sequence[Reading]) -> Tensor:
        return hidden_vectors(_load(self.model), readings, self.batch_size, self.chat_template_kwargs)


def hidden_vectors(
    reward: LearnedReward, readings: Sequence[Reading], batch_size: int = 32, template_kwargs: Any = None
) -> Tensor:
    """What the head of a reward model is given for each text, in float32 on the CPU. `(N, H)`

    Raises:
        `ValueError`: if the model has no linear layer that is known to be a head.
    """
    layer = _head(reward.model)
    prompts, completions = [reading.prompt for reading in readings], [reading.completion for reading in readings]
    ids = reward.encode(prompts, completions, [template_kwargs] * len(readings))
    vectors = torch.zeros(len(ids), layer.in_features)
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach()))
    try:
        for rows in length_batches([len(of_text) for of_text in ids], batch_size):
            given.clear()
            forward(reward.model, [ids[row] for row in rows], reward.tokenizer.pad_token_id)
            states = given[-1].float().cpu()
            if states.ndim == 3:  # a decoder scores every token, and its last real one counts
                last = torch.tensor([len(ids[row]) - 1 for row in rows])
                states = states[torch.arange(len(rows)), last]
            vectors[rows] = states
    finally:
        hook.remove()
    return vectors


def _head(model: Any) -> torch.nn.Linear:
    """The last linear layer that carries the name of a head."""
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.split(".")[-1] in HEADS
        and module.out_features == model.config.num_labels
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear layer named {', '.join(HEADS)}, so it is not known what its head "
            "reads. Take the features of its encoder instead: Embedding."
        )
    return found[-1]


@functools.lru_cache(maxsize=2)
def _load(model: str) -> LearnedReward:
    return LearnedReward(model, calibrate=False)
