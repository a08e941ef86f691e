"""What rewards with a model do alike: batches of similar length, padded on the right, and checks of what comes out.

Padding on the right is never seen by the tokens of a text: a decoder looks back only, and an encoder is told by its
mask. So a score is that of the text alone, whatever it was batched with (up to the rounding of float32).
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.rewards.base import Text, as_text
from rlhf_recipes.rewards.checks import RewardError


def length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of similar length, the longest first: what fits into memory once fits to the end."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def model_outputs(
    model: Any, token_ids: Sequence[Sequence[int]], batch_size: int, pad_id: int
) -> Iterator[tuple[list[int], Any]]:
    """Run a model over texts that are encoded already, in evaluation mode and without gradients.

    Yields:
        `tuple[list[int], ModelOutput]`: the rows of a batch, and what the model says of them.
    """
    for rows in length_batches([len(ids) for ids in token_ids], batch_size):
        yield rows, forward(model, [token_ids[row] for row in rows], pad_id)


def forward(model: Any, token_ids: Sequence[Sequence[int]], pad_id: int, **kwargs: Any) -> Any:
    """One pass over one batch of texts, padded on the right, in evaluation mode and without gradients."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(ids) for ids in token_ids])
    width = int(lengths.max())
    input_ids = torch.tensor([[*ids, *[pad_id] * (width - len(ids))] for ids in token_ids])  # (b, L)
    mask = torch.arange(width) < lengths[:, None]  # (b, L)
    with torch.inference_mode(), evaluating(model):
        return model(input_ids=input_ids.to(device), attention_mask=mask.long().to(device), **kwargs)


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout is off inside; the mode that the model was in is given back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def joined(prompt: Text, completion: Text, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, bool]:
    """The text that a model reads, in two parts, and whether the tokenizer has yet to add special tokens to it.

    A plain completion goes on where its prompt ends. The messages of a conversation become text through the chat
    template, up to where the answer begins; without a template their texts stand one below the other.
    """
    text = as_text(completion)
    if isinstance(prompt, str):
        return prompt, text, True
    if tokenizer.chat_template is None:
        return f"{as_text(prompt)}\n", text, True
    rendered = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return str(rendered), text, False


def first_special(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to read where a text has none: the beginning-of-sequence token, or what comes nearest to it."""
    candidates = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next((token for token in candidates if token is not None), 0)


def check_finite(values: Sequence[Any], name: str, prompts: Sequence[Text], completions: Sequence[Text]) -> None:
    """Refuse NaN and infinity out of a model: passed on, one such number ends a training run.

    Args:
        values (`Sequence`): for each row a number, a list of numbers, or `None`.

    Raises:
        `RewardError`: names the reward and the first such row, with its prompt and completion.
    """
    for row, value in enumerate(values):
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        bad = next((number for number in numbers if not math.isfinite(number)), None)
        if bad is not None:
            raise RewardError(
                f"The model of reward {name!r} gave {bad}, for row {row} (prompt {_short(prompts[row])}, completion "
                f"{_short(completions[row])}). Its weights are damaged, or its precision overflows: float16 does "
                "where bfloat16 and float32 do not (`dtype`)."
            )


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to pad with. The mask hides it, so that any id would do that the model has."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 4]}...{text[-1]}"
