"""A reward model that shares the policy's tokenizer, and so reads the policy's own tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.data.prompts import tokenize_prompts
from rlhf_recipes.modeling.critics import ValueModel, has_scalar_head


class SharedTokenizerReward:
    """The score of a decoder with a scalar head, read at the last token of prompt and completion.

    This is what TRL's PPO did with its `reward_model`: the policy's token ids go in as they are, special tokens
    included, and no text is encoded a second time. A model with a tokenizer of its own belongs into
    [`~rlhf_recipes.rewards.LearnedReward`].

    Args:
        model (`PreTrainedModel`): the reward model, as loaded by `AutoModelForSequenceClassification`.
        tokenizer (`PreTrainedTokenizerBase`): the policy's tokenizer.
        batch_size (`int`, *optional*, defaults to 32): texts in one forward pass.
        name (`str`, *optional*, defaults to `"reward_model"`): what logs show.

    Raises:
        `ValueError`: if the model is no decoder with one label.
    """

    wants_prompt_ids = True

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, batch_size: int = 32, name: str = "reward_model"
    ) -> None:
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        if not has_scalar_head(inner):
            labels = getattr(inner.config, "num_labels", "no")
            raise ValueError(
                f"reward_model is a {type(inner).__name__} with {labels} labels. As an object it reads the policy's "
                "token ids and must be a decoder with a scalar head, as "
                "AutoModelForSequenceClassification(..., num_labels=1) loads it. Give any other reward model in "
                "reward_funcs, which read text: with its tokenizer in reward_processing_classes, or by its folder or "
                "id."
            )
        self.model = model.eval().requires_grad_(False)
        self.reader = ValueModel(model)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.__name__ = name

    @torch.inference_mode()
    def __call__(
        self,
        prompts: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        prompt_ids: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """Score each prompt with its completion. `(B,)`"""
        if prompt_ids is None:
            prompt_ids = tokenize_prompts(prompts, self.tokenizer)
        texts = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        device = next(self.model.parameters()).device
        scores = torch.empty(len(texts))
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            lengths = torch.tensor([len(texts[row]) for row in rows])
            width = int(lengths.max())
            # What pads is hidden from every real token; 0 is an id that every model has.
            ids = torch.tensor([[*texts[row], *[0] * (width - len(texts[row]))] for row in rows])
            mask = (torch.arange(width) < lengths[:, None]).long()
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            values = self.reader(ids.to(device), mask.to(device), positions.to(device)).cpu()
            scores[rows] = values[torch.arange(len(rows)), lengths - 1]
        return scores.tolist()
