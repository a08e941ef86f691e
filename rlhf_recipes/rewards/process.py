"""Rewards inside a completion: of its tokens, and of the steps of an answer (process rewards)."""

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from rlhf_recipes.data.chat import KWARGS
from rlhf_recipes.errors import RewardValueError
from rlhf_recipes.modeling.frozen import FrozenModel, check_batch_size
from rlhf_recipes.modeling.heads import LabelScore
from rlhf_recipes.modeling.loading import load_tokenizer
from rlhf_recipes.modeling.reading import TokenPlaces, check_finite, joined, model_outputs, pad_id_of
from rlhf_recipes.rewards.base import Series, TokenSeries
from rlhf_recipes.rewards.model_reward import ModelReward
from rlhf_recipes.rewards.step_model import Span, StepModel
from rlhf_recipes.statistics import is_finite
from rlhf_recipes.texts import Text, as_text, sentence

Reduction = Literal["last", "min", "mean", "product", "per_token"]
REDUCED: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "mean": statistics.fmean,
    "product": math.prod,
}
FUNCTION = re.compile(r"(\.py|^[\w.]+):\w+$")  # a file or a module, and a name in it
STEP_BREAK = "\n\n"


class TokenClassifierReward(ModelReward):
    """A score for each token of the completion, from a token classifier with a tokenizer of its own. Per token.

    Prompt and completion are read as one text. A token of the policy gets the sum of the scores of those tokens of the
    classifier that end inside its text, so that over the completion the scores add up to what the classifier said,
    however the two tokenizers cut. A token in which none of them ends gets 0, as does the end-of-sequence token. A
    character that takes several tokens (byte-level BPE) ends in the last of them.

    Of a text longer than `max_length` the beginning is cut off, first the prompt's; tokens of a completion that were
    cut off get 0, and that it happened is logged once. `None` for a completion without a token of the classifier, as
    an empty one. Range and languages are those of the classifier. Messages go through its chat template, where it has
    one.

    Args:
        model (`str`, `Path` or `torch.nn.Module`):
            A token classifier: a folder, a model id of the Hub, or a model that is loaded already.
        policy_tokenizer (`str`, `Path` or `PreTrainedTokenizerBase`):
            The policy's tokenizer, or where it lies: it says which text each of the policy's tokens stands for.
        label (`int` or `str`, *optional*):
            Which of the classifier's outputs is the score. Needed where it has several and `labels` is not given.
        labels (`dict`, *optional*):
            What each label counts: `{"toxic": -1.0}`.
        probabilities (`bool`, *optional*, defaults to `False`):
            Whether logits become probabilities before they are weighed, as in [`LearnedReward`].
        processing_class, batch_size, max_length, device, dtype, load_in_4bit, name: as in [`ModelReward`]; the
            tokenizer must be a fast one.

    Raises:
        `ValueError`: when called, if `completion_ids` are not the tokens of the completion.
        `RewardError`: when called, if the model gives NaN or infinity.
    """

    per_token = True
    may_not_apply = True
    shown = ("source",)

    def __init__(
        self,
        model: str | Path | Any,
        policy_tokenizer: str | Path | PreTrainedTokenizerBase,
        label: int | str | None = None,
        labels: Mapping[int | str, float] | None = None,
        probabilities: bool = False,
        processing_class: str | Path | PreTrainedTokenizerBase | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        device: Any = None,
        dtype: Any = None,
        load_in_4bit: bool = False,
        name: str | None = None,
    ) -> None:
        check_batch_size(batch_size)
        from transformers import AutoModelForTokenClassification

        self.reader = FrozenModel(
            AutoModelForTokenClassification, model, processing_class, max_length, device, dtype, load_in_4bit,
            needs_offsets=True,
        )  # fmt: skip
        self.source = self.reader.source
        self.head = LabelScore(self.reader.model.config, label, labels, probabilities)
        self.policy_tokenizer = _tokenizer(policy_tokenizer)
        self.batch_size = batch_size
        self.__name__ = name or type(self).__name__

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        **kwargs: Any,
    ) -> TokenSeries:
        """One score for each of the policy's tokens. `(B, tokens of the row)`"""
        reader = self.reader
        given = kwargs.get(KWARGS) or [None] * len(prompts)
        parts = [joined(p, c, reader.tokenizer, own) for p, c, own in zip(prompts, completions, given, strict=True)]
        encoded = reader.encode_all([(start + end, special) for start, end, special in parts], self.__name__)
        result: TokenSeries = [None] * len(parts)
        # Where in the completion each token of the classifier ends; those of the prompt, and special ones, do not.
        ends = [
            [end - len(start) for _, end in offsets]
            for (_, offsets), (start, _, _) in zip(encoded, parts, strict=True)
        ]
        judged = [row for row, own in enumerate(ends) if any(end > 0 for end in own)]
        token_ids = [encoded[row][0] for row in judged]
        for batch, output in model_outputs(reader.model, token_ids, self.batch_size, pad_id_of(reader.tokenizer)):
            scores = self.head(output.logits)  # (b, L)
            for own_scores, index in zip(scores.tolist(), batch, strict=True):
                row = judged[index]
                # Padding stands behind the text, and `ends` is as long as the text.
                placed = [(end, score) for end, score in zip(ends[row], own_scores, strict=False) if end > 0]
                result[row] = _paid(
                    self.policy_tokenizer, completion_ids[row], parts[row][1], completions[row], placed
                )
        check_finite(result, self.__name__, prompts, completions)
        return result


class StepReward(ModelReward):
    """Scores of the steps of an answer, made into one number or paid where each step ends.

    A step is what stands between two separators, without the white space around it; blank ones are none. With the
    scores `s_1 .. s_n` of the steps, `reduce` gives:

    - `"last"`: `s_n`; `"mean"`: `1/n sum s_i`.
    - `"min"`: `min s_i`, an answer is as good as its worst step (Math-Shepherd, arXiv 2312.08935).
    - `"product"`: `s_1 * ... * s_n`, the probability that all steps are right, for scores from 0 to 1 (Lightman et
      al., arXiv 2305.20050). It falls with every step.
    - `"per_token"`: `s_i` at the token in which step i ends, 0 at all others. The reward is then per token.

    Their sum, and so the return of `"per_token"`, grows with the number of steps where scores are above 0: center them
    (`labels={"good": 1.0, "bad": -1.0}`), or steps will be split.

    `None` for a completion without a step, as an empty one. Steps of a long answer that the model could not read (see
    [`StepModel`]) are left out, or paid 0. Range and languages are those of the scores.

    Args:
        score (callable, `str`, `Mapping` or [`StepModel`]):
            A function `f(prompt, steps) -> list[float]`, one number for each step, which is given the prompt as it is
            in the dataset and the steps as texts. Or a process reward model: a [`StepModel`], its arguments as a
            mapping (`{model: my-org/prm, label: 1}`), or its folder or id alone. A function may be named:
            `path/to/file.py:name`, or `package.module:name`.
        separator (`str` or `re.Pattern`, *optional*, defaults to a blank line):
            What stands between steps: a text, or a pattern.
        regex (`bool`, *optional*, defaults to `False`):
            Whether a `separator` of type `str` is a pattern of Python's `re`.
        steps (callable, *optional*):
            Instead of a separator, a function of the completion's text that gives the steps, each as it stands there,
            in order.
        reduce (`str`, *optional*, defaults to `"last"`):
            One of the five above.
        policy_tokenizer (`str`, `Path` or `PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer, or where it lies; for `reduce="per_token"`, and only there.
        name (`str`, *optional*, defaults to `"StepReward"`):
            What logs show.

    Raises:
        `RewardError`: when called, if a step gets no finite number.

    Example:

    >>> def has_number(prompt, steps):
    ...     return [1.0 if any(sign.isdigit() for sign in step) else 0.0 for step in steps]
    >>> StepReward(has_number, reduce="mean")(["2 + 2?"], ["Add them.\\n\\nThat makes 4."], [[1]])
    [0.5]
    """

    may_not_apply = True
    shown = ("score", "reduce")

    def __init__(
        self,
        score: Callable[[Any, list[str]], Sequence[float]] | str | Path | Mapping[str, Any] | StepModel,
        separator: str | re.Pattern[str] = STEP_BREAK,
        regex: bool = False,
        steps: Callable[[str], Sequence[str]] | None = None,
        reduce: Reduction = "last",
        policy_tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        name: str | None = None,
    ) -> None:
        if reduce not in get_args(Reduction):
            raise ValueError(f"StepReward reduces by {', '.join(get_args(Reduction))}, not by {reduce!r}.")
        self.per_token = reduce == "per_token"
        if self.per_token != (policy_tokenizer is not None):
            raise ValueError(
                "policy_tokenizer says at which token each step ends: reduce='per_token' needs it, and nothing else "
                f"does. Here reduce is {reduce!r} and policy_tokenizer {policy_tokenizer!r}."
            )
        if steps is not None and (separator != STEP_BREAK or regex):
            raise ValueError("Steps come from a separator or from the function `steps`; give one of them.")
        self.separator = _pattern(separator, regex)
        self.steps = steps
        self.score: Any = _scorer(score)
        self.reduce = reduce
        self.policy_tokenizer = None if policy_tokenizer is None else _tokenizer(policy_tokenizer)
        self.__name__ = name or type(self).__name__

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        **kwargs: Any,
    ) -> Series | TokenSeries:
        """One number for each row, or of `per_token` one for each token. `(B,)` or `(B, tokens of the row)`"""
        texts = [as_text(completion) for completion in completions]
        spans = [self._spans(text, row) for row, text in enumerate(texts)]
        scores = self._scores(prompts, completions, texts, spans)
        judged = [[score for score in own if score is not None] for own in scores]
        check_finite(judged, self.__name__, prompts, completions)
        if not self.per_token:
            return [float(REDUCED[self.reduce](own)) if own else None for own in judged]
        result: TokenSeries = [None] * len(texts)
        for row, own in enumerate(scores):
            if own:
                placed = [(end, s) for (_, end), s in zip(spans[row], own, strict=True) if s is not None]
                result[row] = _paid(self.policy_tokenizer, completion_ids[row], texts[row], completions[row], placed)
        return result

    def _scores(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        texts: Sequence[str],
        spans: Sequence[Sequence[Span]],
    ) -> list[list[float | None]]:
        if isinstance(self.score, StepModel):
            return self.score.scores(prompts, completions, spans, self.__name__)
        return [self._of_steps(row, prompts[row], texts[row], own) if own else [] for row, own in enumerate(spans)]

    def _of_steps(self, row: int, prompt: Text, text: str, spans: Sequence[Span]) -> list[float | None]:
        steps = [text[start:end] for start, end in spans]
        values = self.score(prompt, steps)
        values = list(values.tolist() if hasattr(values, "tolist") else values)
        if len(values) != len(steps) or not all(isinstance(value, bool) or is_finite(value) for value in values):
            raise RewardValueError(
                f"The score of reward {self.__name__!r} must give one finite number for each of the {len(steps)} "
                f"steps {steps!r:.200} of row {row}, but gave {values!r:.200}."
            )
        return values

    def _spans(self, text: str, row: int) -> list[Span]:
        """The characters in which each step stands, without white space around it."""
        if self.steps is None:
            cuts = [match.span() for match in self.separator.finditer(text)]
            begins, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
            return [_stripped(text, span) for span in zip(begins, ends, strict=True) if text[slice(*span)].strip()]
        spans, last = [], 0
        for step in self.steps(text):
            begin = text.find(step, last)
            if begin < 0:
                raise RewardValueError(
                    f"The function `steps` of reward {self.__name__!r} gave {step!r:.200}, which is not in the text "
                    f"of row {row} after the step before it. It must give parts of the completion, unchanged and in "
                    "order."
                )
            last = begin + len(step)
            if step.strip():
                spans.append(_stripped(text, (begin, last)))
        return spans


def _paid(
    tokenizer: Any, ids: Sequence[int], text: str, completion: Text, scores: Sequence[tuple[int, float]]
) -> list[float]:
    """Each score at the token in which its character ends; several at one token add up."""
    places = TokenPlaces(tokenizer, ids, text, may_be_begun=not isinstance(completion, str))
    result = [0.0] * len(ids)
    for end, score in scores:
        result[places.of(end)] += score
    return result


def _stripped(text: str, span: Span) -> Span:
    part = text[slice(*span)]
    begin = span[0] + len(part) - len(part.lstrip())
    return begin, begin + len(part.strip())


def _pattern(separator: str | re.Pattern[str], regex: bool) -> re.Pattern[str]:
    if isinstance(separator, re.Pattern):
        return separator
    if not separator:
        raise ValueError("The separator is empty, so that no step would end. Give what stands between two steps.")
    try:
        return re.compile(separator if regex else re.escape(separator))
    except re.error as error:
        raise ValueError(f"The separator {separator!r} is no pattern of Python's re: {sentence(error)}") from error


def _scorer(score: Any) -> Any:
    if isinstance(score, str) and FUNCTION.search(score):
        from rlhf_recipes.imports import find_function  # it finds rewards by name, these among them

        return find_function(score)
    if isinstance(score, (str, Path)):
        return StepModel(score)
    if isinstance(score, Mapping):
        return StepModel(**score)
    if isinstance(score, StepModel) or callable(score):
        return score
    raise TypeError(
        f"score must be a function of prompt and steps, or a process reward model (a StepModel, its arguments, its "
        f"folder or id), but is of type {type(score).__name__}."
    )


def _tokenizer(tokenizer: str | Path | PreTrainedTokenizerBase) -> Any:
    return load_tokenizer(str(tokenizer)) if isinstance(tokenizer, (str, Path)) else tokenizer
