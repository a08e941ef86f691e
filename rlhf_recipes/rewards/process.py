"""Rewards inside a completion: of its tokens, and of the steps of an answer (process rewards)."""

import logging
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from transformers import PreTrainedTokenizerBase

from rlhf_recipes.data.chat import KWARGS
from rlhf_recipes.errors import RewardValueError
from rlhf_recipes.modeling.frozen import FrozenModel, check_batch_size, warn_of_truncation
from rlhf_recipes.modeling.heads import LabelScore, RewardModelSettings
from rlhf_recipes.modeling.loading import load_tokenizer
from rlhf_recipes.modeling.reading import TokenPlaces, check_finite, first_special, joined, model_outputs, pad_id_of
from rlhf_recipes.rewards.base import Series, TokenSeries
from rlhf_recipes.texts import Text, as_text, sentence

Span: TypeAlias = tuple[int, int]  # first character, and the one after the last
Reduction = Literal["last", "min", "mean", "product", "per_token"]
FUNCTION = re.compile(r"(\.py|^[\w.]+):\w+$")  # a file or a module, and a name in it
STEP_BREAK = "\n\n"
LINE_BREAK = "\n"  # behind each step, unless another mark is given
logger = logging.getLogger(__name__)


class TokenClassifierReward:
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
        processing_class (`str`, `Path` or `PreTrainedTokenizerBase`, *optional*):
            The classifier's tokenizer, or where it lies; a fast one. Default: that of `model`.
        batch_size (`int`, *optional*, defaults to 32):
            Texts in one forward pass.
        max_length, device, dtype, load_in_4bit: as in [`LearnedReward`].
        name (`str`, *optional*, defaults to `"TokenClassifierReward"`):
            What logs show.

    Raises:
        `ValueError`: when called, if `completion_ids` are not the tokens of the completion.
        `RewardError`: when called, if the model gives NaN or infinity.
    """

    per_token = True
    may_not_apply = True

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
        self._arguments = (
            model, policy_tokenizer, label, labels, probabilities, processing_class, batch_size, max_length, device,
            dtype, load_in_4bit, name,
        )  # fmt: skip
        from transformers import AutoModelForTokenClassification

        self.reader = FrozenModel(
            AutoModelForTokenClassification, model, processing_class, max_length, device, dtype, load_in_4bit,
            needs_offsets=True,
        )  # fmt: skip
        self.head = LabelScore(self.reader.model.config, label, labels, probabilities)
        self.policy_tokenizer = _tokenizer(policy_tokenizer)
        self.batch_size = batch_size
        self.__name__ = name or type(self).__name__

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

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
                is_chat = not isinstance(completions[row], str)
                places = TokenPlaces(self.policy_tokenizer, completion_ids[row], parts[row][1], is_chat)
                # Padding stands behind the text, and `ends` is as long as the text.
                placed = [(end, score) for end, score in zip(ends[row], own_scores, strict=False) if end > 0]
                result[row] = _paid_at(places, placed, len(completion_ids[row]))
        check_finite(result, self.__name__, prompts, completions)
        return result

    def __repr__(self) -> str:
        return f"TokenClassifierReward(name={self.__name__!r}, model={self.reader.source!r})"


class StepModel:
    """A process reward model: it reads prompt and answer with a mark after each step, and judges the step there.

    Two kinds are known:

    - A token classifier, as TRL's `PRMTrainer` trains: after each step stands `step_token`, and what the classifier
      says of it is the step's score. Prompt, steps and marks are encoded apart and put together, as in training.
    - A causal language model with `good_token` and `bad_token`, as Math-Shepherd (Wang et al., arXiv 2312.08935): the
      score is `p(good) / (p(good) + p(bad))` for what follows the mark. Marks are written into the text, which is
      encoded whole. For the model of that paper: `step_token=" ки"`, `good_token="+"`, `bad_token="-"`.

    Args:
        model (`str`, `Path` or `torch.nn.Module`):
            A folder, a model id of the Hub, or a model that is loaded already.
        step_token (`str`, *optional*):
            The mark, as in the model's training. Default: what `reward_config.json` beside the model says, else a line
            break, or the separator of a tokenizer that drops line breaks.
        label (`int` or `str`, *optional*):
            The classifier's output that is the score, such as that of correct steps (1 for TRL's).
        labels (`dict`, *optional*):
            Instead, what each label counts: `{"good": 1.0, "bad": -1.0}` (PRM800K, Lightman et al., arXiv 2305.20050,
            has a third, neutral).
        probabilities (`bool`, *optional*):
            Whether the classifier's logits become probabilities first. Default: what `reward_config.json` beside the
            model says, else yes.
        good_token, bad_token (`str`, *optional*):
            One token each, of a causal model. Both or neither.
        processing_class (`str`, `Path` or `PreTrainedTokenizerBase`, *optional*):
            The model's tokenizer, or where it lies. Default: that of `model`.
        batch_size (`int`, *optional*, defaults to 16):
            Texts in one forward pass.
        max_length, device, dtype, load_in_4bit: as in [`LearnedReward`]. A longer text loses its beginning; steps
            whose mark is cut off with it are not judged.

    Raises:
        `ValueError`: if a mark or token is not known to the tokenizer as it must be, or options do not fit together.
    """

    def __init__(
        self,
        model: str | Path | Any,
        step_token: str | None = None,
        label: int | str | None = None,
        labels: Mapping[int | str, float] | None = None,
        probabilities: bool | None = None,
        good_token: str | None = None,
        bad_token: str | None = None,
        processing_class: str | Path | PreTrainedTokenizerBase | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        device: Any = None,
        dtype: Any = None,
        load_in_4bit: bool = False,
    ) -> None:
        check_batch_size(batch_size)
        self._arguments = (
            model, step_token, label, labels, probabilities, good_token, bad_token, processing_class, batch_size,
            max_length, device, dtype, load_in_4bit,
        )  # fmt: skip
        self.is_causal = good_token is not None
        if (good_token is None) != (bad_token is None):
            raise ValueError("good_token and bad_token belong together: give both for a causal model, or neither.")
        if self.is_causal and (label is not None or labels is not None or probabilities is False):
            raise ValueError(
                "label, labels and probabilities are for a token classifier, good_token and bad_token for a causal "
                "language model. Give what belongs to one of them."
            )
        self.template_kwargs: Mapping[str, Any] | None = None
        if isinstance(model, (str, Path)):
            settings = RewardModelSettings.load(model)
            self.template_kwargs = settings.chat_template_kwargs
            step_token = settings.step_token if step_token is None else step_token
            max_length = settings.max_length if max_length is None else max_length
            if probabilities is None and settings.step_token is not None:
                probabilities = settings.probabilities
        probabilities = True if probabilities is None else probabilities
        from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

        kind = AutoModelForCausalLM if self.is_causal else AutoModelForTokenClassification
        self.reader = FrozenModel(
            kind, model, processing_class, max_length, device, dtype, load_in_4bit, needs_offsets=self.is_causal
        )
        self.step_token = own_mark(LINE_BREAK if step_token is None else step_token, self.reader.tokenizer)
        self.mark = self._ids(self.step_token)
        if not self.mark:
            raise ValueError(f"The tokenizer makes no token of step_token {step_token!r}; give the model's own mark.")
        self.candidates = [self._single("good_token", good_token), self._single("bad_token", bad_token)]
        self.head = None if self.is_causal else LabelScore(self.reader.model.config, label, labels, probabilities)
        self.batch_size = batch_size

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def scores(
        self, prompts: Sequence[Text], completions: Sequence[Text], spans: Sequence[Sequence[Span]], name: str
    ) -> list[list[float | None]]:
        """The score of each step of each row; `None` for one whose mark was cut off.

        Args:
            spans: for each row, the characters of its completion in which each step stands.
            name: the reward's, for what is logged.
        """
        encode = self._whole if self.is_causal else self._apart
        before = self.reader.truncated
        marked = [encode(p, c, own) for p, c, own in zip(prompts, completions, spans, strict=True)]
        if before == 0 and self.reader.truncated:
            warn_of_truncation(name, self.reader.truncated, len(marked), self.reader.max_length)
        result: list[list[float | None]] = [[] for _ in marked]
        token_ids = [ids for ids, _ in marked]
        pad_id = pad_id_of(self.reader.tokenizer)
        for rows, output in model_outputs(self.reader.model, token_ids, self.batch_size, pad_id):
            for index, row in enumerate(rows):
                places = marked[row][1]
                kept = [place for place in places if place >= 0]
                values = iter(self._read(output.logits[index, kept]))
                result[row] = [next(values) if place >= 0 else None for place in places]
        return result

    def __repr__(self) -> str:
        return f"StepModel(model={self.reader.source!r}, step_token={self.step_token!r})"

    def _read(self, logits: Any) -> list[float]:
        if self.head is not None:
            return self.head(logits).tolist()
        return logits[:, self.candidates].float().softmax(dim=-1)[:, 0].tolist()

    def _apart(self, prompt: Text, completion: Text, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
        """Token ids, and the last one of each mark; each part is encoded on its own."""
        start, text, special = joined(prompt, completion, self.reader.tokenizer, self.template_kwargs)
        steps = [text[begin:end] for begin, end in spans]
        ids, places = encode_steps(start, steps, special, self.mark, self.reader.tokenizer)
        return self._cut(ids, places, self.reader.tokenizer.bos_token_id)

    def _whole(self, prompt: Text, completion: Text, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
        """Token ids, and the last one of each mark; the marks are written into the text, which is encoded whole."""
        start, text, special = joined(prompt, completion, self.reader.tokenizer, self.template_kwargs)
        written, ends, last = start, [], 0
        for _, end in spans:
            written += text[last:end] + self.step_token
            ends.append(len(written))
            last = end
        said = self.reader.tokenizer(written, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        token_ends = [end for _, end in said.offset_mapping]
        # White space after a mark may be part of its token, so that the token ends later than the mark.
        last_of_text = max(place for place, end in enumerate(token_ends) if end > 0)
        places = [next((place for place, end in enumerate(token_ends) if end >= mark), last_of_text) for mark in ends]
        return self._cut(list(said.input_ids), places, self.reader.tokenizer.bos_token_id)

    def _cut(self, ids: list[int], places: list[int], bos: int | None) -> tuple[list[int], list[int]]:
        limit = self.reader.max_length
        if limit is None or len(ids) <= limit:
            return ids or [first_special(self.reader.tokenizer)], places
        self.reader.truncated += 1
        return cut_beginning(ids, places, limit, bos)

    def _ids(self, text: str) -> list[int]:
        return list(self.reader.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _single(self, what: str, token: str | None) -> int:
        if token is None:
            return -1
        ids = self._ids(token)
        if len(ids) != 1:
            raise ValueError(f"{what} {token!r} is {len(ids)} tokens of the model's tokenizer, but must be one.")
        return ids[0]


def own_mark(step_token: str, tokenizer: Any) -> str:
    """The mark behind each step; the separator of a tokenizer that drops line breaks, as most encoders' do."""
    if step_token != LINE_BREAK or tokenizer(step_token, add_special_tokens=False, verbose=False).input_ids:
        return step_token
    own = tokenizer.sep_token or tokenizer.eos_token
    if own is None:
        return step_token
    logger.info("The tokenizer drops line breaks, so that %r stands behind each step.", own)
    return str(own)


def encode_steps(
    start: str, steps: Sequence[str], special: bool, mark: Sequence[int], tokenizer: Any
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and steps with a mark behind each, and the place of the last token of each mark.

    Each part is encoded on its own, so that a mark is the same tokens wherever it stands; training and scoring both
    read this.

    Args:
        start (`str`): The prompt as text.
        steps (`Sequence[str]`): The steps.
        special (`bool`): Whether a beginning-of-sequence token is yet to be put in front, if there is one.
        mark (`Sequence[int]`): The tokens of the mark.
        tokenizer (`PreTrainedTokenizerBase`): The model's.
    """
    bos = tokenizer.bos_token_id

    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    ids = ([bos] if special and bos is not None else []) + ids_of(start)
    places = []
    for step in steps:
        ids += ids_of(step) + list(mark)
        places.append(len(ids) - 1)
    return ids, places


def cut_beginning(ids: list[int], places: Sequence[int], limit: int, bos: int | None) -> tuple[list[int], list[int]]:
    """The last `limit` tokens, the first of them BOS if that was; the place of a mark that was cut off is -1."""
    kept = 1 if ids[0] == bos and limit > 1 else 0
    dropped = len(ids) - limit
    return ids[:kept] + ids[kept + dropped :], [place - dropped if place >= kept + dropped else -1 for place in places]


class StepReward:
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
        self._arguments = (score, separator, regex, steps, reduce, policy_tokenizer, name)
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

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

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
            return [self._reduced(own) for own in judged]
        result: TokenSeries = [None] * len(texts)
        for row, own in enumerate(scores):
            if own:
                is_chat = not isinstance(completions[row], str)
                places = TokenPlaces(self.policy_tokenizer, completion_ids[row], texts[row], is_chat)
                placed = [(end, s) for (_, end), s in zip(spans[row], own, strict=True) if s is not None]
                result[row] = _paid_at(places, placed, len(completion_ids[row]))
        return result

    def __repr__(self) -> str:
        return f"StepReward(name={self.__name__!r}, score={self.score!r}, reduce={self.reduce!r})"

    def _scores(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        texts: Sequence[str],
        spans: Sequence[Sequence[Span]],
    ) -> list[list[float | None]]:
        rows = [row for row, own in enumerate(spans) if own]
        result: list[list[float | None]] = [[] for _ in texts]
        if isinstance(self.score, StepModel):
            read = self.score.scores(
                [prompts[row] for row in rows],
                [completions[row] for row in rows],
                [spans[row] for row in rows],
                self.__name__,
            )
            for row, own in zip(rows, read, strict=True):
                result[row] = own
            return result
        for row in rows:
            steps = [texts[row][start:end] for start, end in spans[row]]
            values = self.score(prompts[row], steps)
            result[row] = list(values.tolist() if hasattr(values, "tolist") else values)
            if len(result[row]) != len(steps) or any(not _is_number(value) for value in result[row]):
                raise RewardValueError(
                    f"The score of reward {self.__name__!r} must give one finite number for each of the "
                    f"{len(steps)} steps {steps!r:.200} of row {row}, but gave {result[row]!r:.200}."
                )
        return result

    def _reduced(self, scores: list[float]) -> float | None:
        if not scores:
            return None
        if self.reduce == "last":
            return float(scores[-1])
        if self.reduce == "mean":
            return math.fsum(scores) / len(scores)
        return float(min(scores) if self.reduce == "min" else math.prod(scores))

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


def _paid_at(places: TokenPlaces, scores: Sequence[tuple[int, float]], count: int) -> list[float]:
    """Each score at the token in which its character ends; several at one token add up."""
    result = [0.0] * count
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


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)
