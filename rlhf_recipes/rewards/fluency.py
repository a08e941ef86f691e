"""Fluency as a reward: how probable a causal language model finds the completion."""

import contextlib
import inspect
import weakref
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rlhf_recipes.data.chat import KWARGS
from rlhf_recipes.modeling.frozen import FrozenModel, check_batch_size
from rlhf_recipes.modeling.reading import (
    check_finite,
    first_special,
    forward,
    joined,
    length_batches,
    pad_id_of,
    part_to_read,
)
from rlhf_recipes.modeling.shortcuts import ROWS, base_of, limit_of, put_aside
from rlhf_recipes.texts import Text, as_text

# Tokens whose logits are turned into float32 at once.
SLICE = 256

# Of the first texts, tokens on which kept logits are compared with all.
FIRST_TOKENS = 64


def token_logprobs(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    batch_size: int = 16,
    max_length: int | None = None,
) -> list[list[float]]:
    """`log p(y_t | x, y_<t)` of each token `y_t` of the completion `y` after the prompt `x`, under a causal LM.

    Prompt and completion are encoded as one text, by the model's own tokenizer. The completion's tokens are those that
    end after the prompt does: a token that spans the boundary (a prompt that ends with the space of the next word)
    counts as the completion's, as a whole. Special tokens that the tokenizer adds are read and not scored. Where no
    token stands before the completion, the beginning-of-sequence token is read first (else the end-of-sequence token).
    Messages go through the chat template, up to where the answer begins.

    Args:
        model (`PreTrainedModel`): a causal language model. It is run in evaluation mode and given back as it was.
        tokenizer (`PreTrainedTokenizerBase`): the model's own, a fast one. It is left as it is.
        prompts, completions (`Sequence[str | list[dict]]`): B of each.
        batch_size (`int`, *optional*, defaults to 16): texts in one forward pass.
        max_length (`int`, *optional*):
            A longer text loses its beginning: first the prompt's, and where the completion alone is longer, tokens of
            it, which are then missing from the result. Default: no limit.

    Returns:
        `list[list[float]]`: for each row the log-probabilities in nats, in float32, one for each token of the
        completion as this tokenizer sees it; an empty list where it has none.
    """
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        start, end, special = joined(prompt, completion, tokenizer)
        part = part_to_read(start + end, tokenizer, max_length)
        said = tokenizer((start + end)[part], add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        ids, offsets = list(said.input_ids), list(said.offset_mapping)
        if max_length is not None and len(ids) > max_length:
            kept = 1 if offsets[0][1] == 0 and max_length > 1 else 0  # the beginning-of-sequence token stays
            ids = ids[:kept] + ids[kept - max_length :]
            offsets = offsets[:kept] + offsets[kept - max_length :]
        rows.append(_continuation(ids, offsets, len(start) - part.start, tokenizer, max_length))
    return _logprobs(model, rows, batch_size, pad_id_of(tokenizer))


def _continuation(
    ids: list[int],
    offsets: Sequence[tuple[int, int]],
    boundary: int,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> tuple[list[int], list[int]]:
    """Token ids with one at least before the completion, and the positions of the completion's tokens in them."""
    # Added special tokens stand for the characters (0, 0).
    positions = [position for position, (_, end) in enumerate(offsets) if end > boundary]
    if positions and positions[0] == 0:
        if max_length is not None and len(ids) >= max_length:
            return ids, positions[1:]  # what stood before the first token is cut off
        return [first_special(tokenizer), *ids], [position + 1 for position in positions]
    return ids, positions


def _logprobs(
    model: Any, rows: Sequence[tuple[list[int], list[int]]], batch_size: int, pad_id: int
) -> list[list[float]]:
    result: list[list[float]] = [[] for _ in rows]
    scored = [row for row, (_, positions) in enumerate(rows) if positions]
    inner = base_of(model)
    if scored and model not in _keeps_logits:
        first = [rows[row][0][:FIRST_TOKENS] for row in scored[:ROWS]]
        _keeps_logits[model] = _may_keep_logits(model, first, pad_id)
    for batch in length_batches([len(rows[row][0]) for row in scored], batch_size):
        chosen = [scored[index] for index in batch]
        width = max(len(rows[row][0]) for row in chosen)
        # Logits of prompts are not needed, and with a large vocabulary they are most of the memory.
        kept = width - min(rows[row][1][0] for row in chosen) + 1
        kwargs = {"logits_to_keep": kept} if _keeps_logits[model] else {}
        with _whole_rows(inner):
            logits = forward(model, [rows[row][0] for row in chosen], pad_id, **kwargs).logits  # (b, kept, V)
        for index, row in enumerate(chosen):
            ids, positions = rows[row]
            for start in range(0, len(positions), SLICE):
                some = torch.tensor(positions[start : start + SLICE])
                targets = torch.tensor([ids[position] for position in some.tolist()])
                result[row] += _chosen_logprobs(logits[index, some - 1 - width], targets)
    return result


# Of models that were asked: whether they give the logits of the last positions alone, and the same ones.
_keeps_logits: MutableMapping[Any, bool] = weakref.WeakKeyDictionary()


def _may_keep_logits(model: Any, rows: Sequence[list[int]], pad_id: int) -> bool:
    """Whether a model says of the last positions what it says of them among all; where not, one line says so."""
    inner = base_of(model)
    if "logits_to_keep" not in inspect.signature(inner.forward).parameters:
        return False
    width = max(map(len, rows))
    kept = max(1, width - 1)
    with _whole_rows(inner):
        whole = forward(model, rows, pad_id).logits[:, -kept:]
        asked = forward(model, rows, pad_id, logits_to_keep=kept).logits[:, -kept:]
    distance = float("inf")
    if asked.shape == whole.shape:
        real = torch.tensor([[width - kept + column < len(row) for column in range(kept)] for row in rows])
        apart = (asked.float().log_softmax(-1) - whole.float().log_softmax(-1)).abs()
        distance = float(apart.amax(-1)[real].mean())
    fits = distance <= limit_of(model, whole.device)  # NaN is not
    if not fits:
        put_aside("kept logits", type(inner).__name__, f"its log-probabilities are {distance:.2g} nats away")
    return fits


@contextlib.contextmanager
def _whole_rows(model: Any) -> Iterator[None]:
    """Copy the hidden states that are kept: on a CPU the product of a slice with the vocabulary takes 2 times as long
    in float32, and 35 times in bfloat16, as that of a copy."""
    head = model.get_output_embeddings()
    hook = None if head is None else head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def _chosen_logprobs(logits: Tensor, targets: Tensor) -> list[float]:
    """`log softmax(logits)_target`. `(t, V), (t,) -> t floats`"""
    logits = logits.float()
    chosen = logits.gather(1, targets.to(logits.device)[:, None]).squeeze(1)
    return (chosen - logits.logsumexp(dim=1)).tolist()


class Fluency:
    """Mean log-probability of the completion's tokens after the prompt, under a causal language model.

    `r = 1/T sum_t log p(y_t | x, y_<t)`, in nats per token, from minus infinity to 0: the sentence score MeanLP of
    Lau, Armendariz, Lappin, Purver and Shu ("How Furiously Can Colorless Green Ideas Sleep?", TACL 2020), and minus
    the logarithm of the perplexity. What is probable is not yet good: repeated and trite text is very probable, so
    give it a small weight. It knows the languages that the model knows.

    The model reads text with its own tokenizer, so it need not be related to the policy; see [`token_logprobs`] for
    the boundary between prompt and completion. The end of the completion is not scored, since text has no end token.

    With `model="reference"` no model is loaded: the log-probabilities are those of the policy's reference, which
    `PPOTrainer` has computed for its KL penalty. They are the policy's tokens, the end-of-sequence token included, at
    the temperature of sampling, so the same text has another value than under the same model by its folder.

    An empty completion, and one that has no token or with `normalize="word"` no word, gets `None`, since there is no
    lowest value to give: it cannot stand alone. [`Otherwise`] gives such a completion a value of your choice.

    Args:
        model (`str`, `Path` or `torch.nn.Module`):
            A folder or a model id of the Hub (the folder may be that of a LoRA adapter), a model that is loaded
            already, or `"reference"`.
        normalize (`"token"`, `"word"` or `"none"`, *optional*, defaults to `"token"`):
            What the sum of log-probabilities is divided by: tokens, words between white space (comparable between
            tokenizers; not for languages that write no spaces), or nothing, which makes short completions win.
        on_prompt (`bool`, *optional*, defaults to `True`):
            Whether the completion is read after its prompt; else it is read alone.
        processing_class (`str`, `Path` or `PreTrainedTokenizerBase`, *optional*):
            The model's tokenizer, or where it lies. Default: that of `model`. It must be a fast one.
        batch_size (`int`, *optional*, defaults to 16):
            Texts in one forward pass.
        max_length (`int`, *optional*):
            Tokens of prompt and completion that the model reads. A longer text loses its beginning; of a completion
            that is longer, only what is left is scored. Default: all that the model can.
        device (`str` or `torch.device`, *optional*):
            Where to put the model. Default: this process's GPU, or the CPU where there is none.
        dtype (`str` or `torch.dtype`, *optional*):
            Precision to load in. Default: that of the files on a GPU, float32 on a CPU.
        load_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether to hold the model's linear layers in 4 bit, with bitsandbytes.
        name (`str`, *optional*, defaults to `"Fluency"`):
            What logs show.

    Raises:
        `ValueError`: when called, if `model="reference"` and the trainer gives no `ref_logprobs`.
        `RewardError`: if the model gives NaN or infinity.

    Example:

    ```python
    reward = Fluency("HuggingFaceTB/SmolLM2-135M")
    reward(prompts=["The cat sat"], completions=[" on the mat."])  # [-1.9], say
    ```
    """

    may_not_apply = True

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        normalize: Literal["token", "word", "none"] = "token",
        on_prompt: bool = True,
        processing_class: str | Path | PreTrainedTokenizerBase | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        load_in_4bit: bool = False,
        name: str | None = None,
    ) -> None:
        self._arguments = (
            model, normalize, on_prompt, processing_class, batch_size, max_length, device, dtype, load_in_4bit, name
        )  # fmt: skip
        if normalize not in ("token", "word", "none"):
            raise ValueError(f"Fluency normalizes by 'token', 'word' or 'none', not by {normalize!r}.")
        check_batch_size(batch_size)
        self.wants_ref_logprobs = isinstance(model, str) and model == "reference"
        self.normalize = normalize
        self.on_prompt = on_prompt
        self.batch_size = batch_size
        self.__name__ = name or type(self).__name__
        self.reader: FrozenModel | None = None
        if not self.wants_ref_logprobs:
            self.reader = FrozenModel(
                AutoModelForCausalLM, model, processing_class, max_length, device, dtype, load_in_4bit,
                needs_offsets=True,
            )  # fmt: skip
        elif not on_prompt or load_in_4bit or (processing_class, max_length, device, dtype) != (None,) * 4:
            raise ValueError(
                "Fluency(model='reference') loads no model: it takes the log-probabilities after the prompt that the "
                "trainer has. Leave out on_prompt, processing_class, max_length, device, dtype and load_in_4bit, or "
                "name a model by its folder or id."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        ref_logprobs: Sequence[Sequence[float] | None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """Mean log-probability of each completion. `(B,)`"""
        if self.reader is None:
            logprobs = self._of_reference(ref_logprobs)
        else:
            logprobs = self._of_model(prompts, completions, kwargs.get(KWARGS))
        values = [self._value(row, as_text(text)) for row, text in zip(logprobs, completions, strict=True)]
        check_finite(values, self.__name__, prompts, completions)
        return values

    def __repr__(self) -> str:
        return f"Fluency(name={self.__name__!r}, normalize={self.normalize!r}, on_prompt={self.on_prompt})"

    def _of_reference(self, ref_logprobs: Sequence[Sequence[float] | None] | None) -> Sequence[Sequence[float] | None]:
        if ref_logprobs is None:
            raise ValueError(
                f"Reward {self.__name__!r} is Fluency(model='reference') and needs the log-probabilities of the "
                "reference policy (ref_logprobs), which the trainer does not give: PPOTrainer does where it has a "
                "reference, GRPOTrainer and RLOOTrainer do not. Name a model instead: Fluency(model='folder or id')."
            )
        return ref_logprobs

    def _of_model(
        self, prompts: Sequence[Text], completions: Sequence[Text], template_kwargs: Sequence[Any] | None
    ) -> list[list[float]]:
        reader = self.reader
        assert reader is not None
        parts = [
            joined(prompt if self.on_prompt else "", completion, reader.tokenizer, own)
            for prompt, completion, own in zip(
                prompts, completions, template_kwargs or [None] * len(prompts), strict=True
            )
        ]
        encoded = reader.encode_all([(start + end, special) for start, end, special in parts], self.__name__)
        rows = [
            _continuation(ids, offsets, len(start), reader.tokenizer, reader.max_length)
            for (ids, offsets), (start, _, _) in zip(encoded, parts, strict=True)
        ]
        return _logprobs(reader.model, rows, self.batch_size, pad_id_of(reader.tokenizer))

    def _value(self, logprobs: Sequence[float] | None, text: str) -> float | None:
        if not logprobs or not text:
            return None
        count = {"token": len(logprobs), "word": len(text.split()), "none": 1}[self.normalize]
        return sum(logprobs) / count if count else None
