"""How probable a causal language model finds the completion: fluency, and acceptability whatever the length."""

import inspect
import math
import weakref
from collections import Counter
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rlhf_recipes.data.chat import KWARGS
from rlhf_recipes.modeling.checks.shortcuts import ROWS, limit_of, put_aside
from rlhf_recipes.modeling.frozen import FrozenModel, check_batch_size
from rlhf_recipes.modeling.logprobs import base_of, read_by_head
from rlhf_recipes.modeling.reading import check_finite, first_special, forward, joined, length_batches, pad_id_of
from rlhf_recipes.rewards.base import Series
from rlhf_recipes.rewards.contract.checks import check_choice, check_setting
from rlhf_recipes.rewards.model_reward import ModelReward
from rlhf_recipes.texts import Text, as_text, lines_of

# Tokens whose logits are turned into float32 at once.
SLICE = 256

# Of the first texts, tokens on which kept logits are compared with all.
FIRST_TOKENS = 64

# Of the first texts, tokens on which kept logits are compared with all.
FIRST_TOKENS = 64


class CausalReward(ModelReward):
    """A reward out of `log p(y_t | x, y_<t)` of each token `y_t` of the completion `y` after the prompt `x`.

    Prompt and completion are encoded as one text, by the model's own tokenizer. The completion's tokens are those that
    end after the prompt does: a token that spans the boundary (a prompt that ends with the space of the next word)
    counts as the completion's, as a whole. Special tokens that the tokenizer adds are read and not scored. Where no
    token stands before the completion, the beginning-of-sequence token is read first (else the end-of-sequence token).
    Messages go through the chat template, up to where the answer begins.

    A text that is longer than `max_length` loses its beginning: first the prompt's, and where the completion alone is
    longer, tokens of it, of which the rest is scored. It knows the languages that the model knows. What is probable is
    not yet good: repeated and trite text is very probable, so give it a small weight.
    """

    may_not_apply = True

    def _load(
        self,
        model: str | Path | torch.nn.Module,
        processing_class: str | Path | PreTrainedTokenizerBase | None,
        batch_size: int,
        max_length: int | None,
        device: str | torch.device | None,
        dtype: str | torch.dtype | None,
        load_in_4bit: bool = False,
    ) -> FrozenModel:
        check_batch_size(batch_size)
        self.batch_size = batch_size
        options = (max_length, device, dtype, load_in_4bit)
        return FrozenModel(AutoModelForCausalLM, model, processing_class, *options, needs_offsets=True)

    def token_logprobs(
        self, reader: FrozenModel, prompts: Sequence[Text], completions: Sequence[Text], columns: Any
    ) -> list[tuple[list[int], list[float]]]:
        """For each row the completion's tokens as the model sees them, and their log-probabilities, in nats."""
        tokenizer, given = reader.tokenizer, columns.get(KWARGS) or [None] * len(prompts)
        parts = [joined(*row[:2], tokenizer, row[2]) for row in zip(prompts, completions, given, strict=True)]
        encoded = reader.encode_all([(start + end, special) for start, end, special in parts], self.__name__)
        rows = [
            _continuation(ids, offsets, len(start), tokenizer, reader.max_length)
            for (ids, offsets), (start, _, _) in zip(encoded, parts, strict=True)
        ]
        logprobs = _logprobs(reader.model, rows, self.batch_size, pad_id_of(tokenizer))
        return [
            ([ids[position] for position in positions], own)
            for (ids, positions), own in zip(rows, logprobs, strict=True)
        ]


class Fluency(CausalReward):
    """Mean log-probability of the completion's tokens after the prompt, under a causal language model.

    `r = 1/T sum_t log p(y_t | x, y_<t)`, in nats per token, from minus infinity to 0: the sentence score MeanLP of
    Lau, Armendariz, Lappin, Purver and Shu ("How Furiously Can Colorless Green Ideas Sleep?", TACL 2020), and minus
    the logarithm of the perplexity. Which tokens are the completion's is said in [`CausalReward`].

    The model reads text with its own tokenizer, so it need not be related to the policy. The end of the completion is
    not scored, since text has no end token.

    With `model="reference"` no model is loaded: the log-probabilities are those of the policy's reference, which
    `PPOTrainer` has computed for its KL penalty. They are the policy's tokens, the end-of-sequence token included, at
    the temperature of sampling, so the same text has another value than under the same model by its folder.

    An empty completion, and one that has no token or with `normalize="word"` no word, gets `None`, since there is no
    lowest value to give: it cannot stand alone. [`Otherwise`] gives such a completion a value of your choice.

    Args:
        model (`str`, `Path` or `torch.nn.Module`):
            A causal language model: a folder, a model id of the Hub, one that is loaded already, or `"reference"`.
        normalize (`"token"`, `"word"` or `"none"`, *optional*, defaults to `"token"`):
            What the sum of log-probabilities is divided by: tokens, words between white space (comparable between
            tokenizers; not for languages that write no spaces), or nothing, which makes short completions win.
        on_prompt (`bool`, *optional*, defaults to `True`):
            Whether the completion is read after its prompt; else it is read alone.
        processing_class, batch_size, max_length, device, dtype, load_in_4bit, name: as in [`ModelReward`].

    Raises:
        `ValueError`: when called, if `model="reference"` and the trainer gives no `ref_logprobs`.

    Example:

    ```python
    reward = Fluency("HuggingFaceTB/SmolLM2-135M")
    reward(prompts=["The cat sat"], completions=[" on the mat."])  # [-1.9], say
    ```
    """

    shown = ("normalize", "on_prompt")

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
        check_choice("Fluency", "normalize", normalize, ("token", "word", "none"))
        self.wants_ref_logprobs = isinstance(model, str) and model == "reference"
        self.normalize, self.on_prompt = normalize, on_prompt
        self.__name__ = name or type(self).__name__
        self.reader: FrozenModel | None = None
        if not self.wants_ref_logprobs:
            self.reader = self._load(model, processing_class, batch_size, max_length, device, dtype, load_in_4bit)
        elif not on_prompt or load_in_4bit or (processing_class, max_length, device, dtype) != (None,) * 4:
            raise ValueError(
                "Fluency(model='reference') loads no model: it takes the log-probabilities after the prompt that the "
                "trainer has. Leave out on_prompt, processing_class, max_length, device, dtype and load_in_4bit, or "
                "name a model by its folder or id."
            )

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        ref_logprobs: Sequence[Sequence[float] | None] | None = None,
        **kwargs: Any,
    ) -> Series:
        """Mean log-probability of each completion. `(B,)`"""
        if self.reader is not None:
            before = prompts if self.on_prompt else [""] * len(completions)
            ref_logprobs = [own for _, own in self.token_logprobs(self.reader, before, completions, kwargs)]
        elif ref_logprobs is None:
            raise ValueError(
                f"Reward {self.__name__!r} is Fluency(model='reference') and needs the log-probabilities of the "
                "reference policy (ref_logprobs), which the trainer does not give: PPOTrainer does where it has a "
                "reference, GRPOTrainer and RLOOTrainer do not. Name a model instead: Fluency(model='folder or id')."
            )
        values = [self._value(row, as_text(text)) for row, text in zip(ref_logprobs, completions, strict=True)]
        check_finite(values, self.__name__, prompts, completions)
        return values

    def _value(self, logprobs: Sequence[float] | None, text: str) -> float | None:
        if not logprobs or not text:
            return None
        count = {"token": len(logprobs), "word": len(text.split()), "none": 1}[self.normalize]
        return sum(logprobs) / count if count else None


class Acceptability(CausalReward):
    """How acceptable a causal language model finds the completion, whatever its length and how rare its words are.

    With `log P` the sum of the log-probabilities of the completion's `n` tokens, in nats:

    - `"slor"`: `(log P - log P_u) / n`, where `P_u` is the product of the tokens' unigram probabilities. Above 0 the
      tokens are more probable in their places than anywhere. (Pauls and Klein, ACL 2012; Lau, Clark and Lappin,
      Cognitive Science 41, 2017.)
    - `"mean"`: `log P / n`, from minus infinity to 0 (the same paper; the same as [`Fluency`]).
    - `"pen"`: `log P / ((5 + n) / 6)^alpha`, from minus infinity to 0 (Lau, Armendariz, Lappin, Purver and Shu, TACL
      2020, table 2).

    What the unigram probabilities are taken from matters. From a `corpus` they are `(count + 1) / (total + V)`, with
    `V` the size of the vocabulary. Without one they are the model's own for the first token of a text, after its
    beginning-of-sequence token: of every token at once and in need of no data, but of words that begin texts rather
    than of words, and a chat model may expect a role there. Where you have texts, give them: for 120 film-review
    sentences under SmolLM2-135M-Instruct the two ways correlate by 0.75 only.

    A completion of white space alone, the empty one among them, gets `None`. Which tokens are the completion's is said
    in [`CausalReward`].

    Args:
        model (`str`, `Path` or `torch.nn.Module`):
            A causal language model: a folder, a model id of the Hub, or one that is loaded already.
        measure (`"slor"`, `"mean"` or `"pen"`, *optional*, defaults to `"slor"`):
            Which of the three.
        corpus (`Sequence[str]`, `str` or `Path`, *optional*):
            Texts to count tokens in for `"slor"`: a list, or a text file with one on each line.
        alpha (`float`, *optional*, defaults to 0.8):
            How strongly `"pen"` makes up for length; 0 not at all.
        on_prompt (`bool`, *optional*, defaults to `True`):
            Whether the completion is read after its prompt; else it is read alone.
        processing_class, batch_size, max_length, device, dtype, name: as in [`ModelReward`].
    """

    shown = ("measure", "on_prompt")

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        measure: Literal["slor", "mean", "pen"] = "slor",
        corpus: Sequence[str] | str | Path | None = None,
        alpha: float = 0.8,
        on_prompt: bool = True,
        processing_class: str | Path | PreTrainedTokenizerBase | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        name: str | None = None,
    ) -> None:
        check_choice("Acceptability", "measure", measure, ("slor", "mean", "pen"))
        if corpus is not None and measure != "slor":
            raise ValueError(f"A corpus is for 'slor'; {measure!r} has no use for it. Leave it out.")
        check_setting("Acceptability", "alpha", alpha, least=0)
        self.measure, self.alpha, self.on_prompt = measure, alpha, on_prompt
        self.__name__ = name or type(self).__name__
        self.reader = self._load(model, processing_class, batch_size, max_length, device, dtype)
        self.unigrams = self._unigrams(corpus) if measure == "slor" else []

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> Series:
        """Score each completion. `(B,)`"""
        before = prompts if self.on_prompt else [""] * len(completions)
        scored = self.token_logprobs(self.reader, before, completions, kwargs)
        values = [self._value(as_text(text), *own) for text, own in zip(completions, scored, strict=True)]
        check_finite(values, self.__name__, prompts, completions)
        return values

    def _value(self, text: str, tokens: Sequence[int], logprobs: Sequence[float]) -> float | None:
        if not logprobs or not text.strip():
            return None
        total, length = math.fsum(logprobs), len(logprobs)
        if self.measure == "pen":
            return total / ((5 + length) / 6) ** self.alpha
        if self.measure == "slor":
            total -= math.fsum(self.unigrams[token] for token in tokens)
        return total / length

    def _unigrams(self, corpus: Sequence[str] | str | Path | None) -> list[float]:
        """`log P_u` of each token of the vocabulary. `(V,)`"""
        model, tokenizer = self.reader.model, self.reader.tokenizer
        if corpus is None:
            logits = forward(model, [[first_special(tokenizer)]], pad_id_of(tokenizer)).logits  # (1, 1, V)
            first: list[float] = logits[0, -1].float().log_softmax(dim=-1).tolist()
            return first
        texts = lines_of(corpus)
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []
        counts = Counter(token for ids in encoded for token in ids)
        if not counts:
            raise ValueError("The corpus of Acceptability has no text to count tokens in.")
        size = model.get_input_embeddings().weight.shape[0]
        return [math.log((counts[token] + 1) / (counts.total() + size)) for token in range(size)]


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
        with read_by_head(inner):  # which reads a copy of the rows that are kept: much faster on a CPU
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
    with read_by_head(inner):
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


def _chosen_logprobs(logits: Tensor, targets: Tensor) -> list[float]:
    """`log softmax(logits)_target`. `(t, V), (t,) -> t floats`"""
    logits = logits.float()
    chosen = logits.gather(1, targets.to(logits.device)[:, None]).squeeze(1)
    return (chosen - logits.logsumexp(dim=1)).tolist()
