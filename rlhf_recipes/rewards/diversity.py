"""Diversity as a reward: within one completion, and between the completions of one prompt. All values are from 0 to 1,
and more is more diverse.

Words are those of `rlhf_recipes.words`: any script, without case and punctuation, so that neither makes a text
diverse. Nonsense is diverse too: use these beside a reward of quality, with a smaller weight.

[`SelfBLEU`] and [`NgramNovelty`] compare a completion with its siblings, the rows of the batch that have the same
prompt. So the trainer must bring all completions of a prompt to one process. `PPOTrainer` does with any
`num_generations`; TRL's `GRPOTrainer` does where `per_device_train_batch_size * steps_per_generation` is a multiple of
`num_generations`. A row without siblings gets `None`, as every row does with one completion for each prompt.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

from rlhf_recipes.imports import optional
from rlhf_recipes.rewards.reference import as_share
from rlhf_recipes.rewards.rules import NgramRule
from rlhf_recipes.texts import Text, as_text
from rlhf_recipes.words import ngrams, words


def siblings(prompts: Sequence[Text]) -> list[list[int]]:
    """For each row the other rows with the same prompt, in order; an empty list for a prompt that no other row has.

    Prompts are the same if the texts are equal, or the messages: roles and all other keys included.
    """
    row_siblings: list[list[int]] = [[] for _ in prompts]
    for rows in _groups(prompts):
        for row in rows:
            row_siblings[row] = [other for other in rows if other != row]
    return row_siblings


def _groups(prompts: Sequence[Text]) -> list[list[int]]:
    """The rows of each different prompt, in order."""
    # Messages cannot be looked up. So the text finds prompts that may be the same, and each is then compared.
    with_text: dict[str, list[list[int]]] = {}
    for row, prompt in enumerate(prompts):
        candidates = with_text.setdefault(as_text(prompt), [])
        same = next((rows for rows in candidates if prompts[rows[0]] == prompt), None)
        if same is None:
            candidates.append([row])
        else:
            same.append(row)
    return [rows for candidates in with_text.values() for rows in candidates]


@dataclass(frozen=True)
class DistinctN(NgramRule):
    """Share of different n-grams among all n-grams of a completion: distinct-n, from 0 to 1.

    `different / all` (Li et al. 2016, arXiv 1510.03055, section 5.2), here for each completion on its own. The longer
    a text, the harder it is to keep high. A completion of fewer than `n` words is one n-gram: 1. One without words,
    such as an empty one or nothing but punctuation, gets 0: it says nothing. `n` is 2 by default.
    """

    def score(self, text: str) -> float:
        found = words(text)
        grams = ngrams(found, min(self.n, len(found)))
        return len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True)
class SiblingReward(NgramRule):
    """A reward of the completions of one prompt: a subclass defines `compare(tokens) -> list[float]`."""

    wants_siblings: ClassVar[bool] = True

    def compare(self, tokens: Sequence[Sequence[str]]) -> list[float]:
        """The values of those completions of one prompt that have words, given as their words."""
        raise NotImplementedError

    def __call__(  # type: ignore[override]
        self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any
    ) -> list[float | None]:
        values: list[float | None] = [None] * len(completions)
        for rows in _groups(prompts):
            if len(rows) == 1:
                continue
            tokens = {row: words(as_text(completions[row])) for row in rows}
            speaking = [row for row in rows if tokens[row]]
            values_here = self.compare([tokens[row] for row in speaking])
            for row in rows:
                values[row] = 0.0
            for row, value in zip(speaking, values_here, strict=True):
                values[row] = value
        return values


@dataclass(frozen=True)
class SelfBLEU(SiblingReward):
    """`1 - BLEU` of a completion against its siblings: 0 if it repeats one of them, 1 if it shares no word with any.

    Self-BLEU is the BLEU of a text with the model's other texts as references (Zhu et al. 2018, Texygen, arXiv
    1802.01886). It is a similarity, and is taken from 1 here, so that a positive weight asks for diversity. BLEU is
    sacrebleu's, for one sentence with effective order and exponential smoothing, as in
    [`~rlhf_recipes.rewards.reference.BLEU`], but on the words of `rlhf_recipes.words`. All siblings are references at
    once.

    A row without siblings gets `None`. A completion without words gets 0, the worst, or a policy could differ by
    saying nothing. It is no reference either: a completion whose siblings all have no words gets 1.

    Args:
        n (`int`, *optional*, defaults to 4):
            Number of words in the longest n-grams of BLEU.
    """

    n: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        optional("sacrebleu", "SelfBLEU")

    def compare(self, tokens: Sequence[Sequence[str]]) -> list[float]:
        grams = [Counter(gram for n in range(1, self.n + 1) for gram in ngrams(own, n)) for own in tokens]
        most = _two_highest(grams)
        lengths = Counter(len(own) for own in tokens)
        return [1.0 - self._bleu(row, own, most, _closest(len(tokens[row]), lengths)) for row, own in enumerate(grams)]

    def _bleu(self, row: int, own: Mapping[tuple, int], most: Mapping[tuple, tuple], reference_length: int) -> float:
        # One table serves all rows: with references gathered anew for each, time would grow with the square of them.
        correct, total = [0] * self.n, [0] * self.n
        for gram, count in own.items():
            highest, holder, second = most[gram]
            correct[len(gram) - 1] += min(count, second if holder == row else highest)
            total[len(gram) - 1] += count
        compute_bleu = optional("sacrebleu.metrics", "SelfBLEU").BLEU.compute_bleu
        length = total[0]
        bleu = compute_bleu(
            correct, total, length, reference_length, smooth_method="exp", effective_order=True, max_ngram_order=self.n
        )
        return as_share(bleu.score)


@dataclass(frozen=True)
class NgramNovelty(SiblingReward):
    """Share of a completion's different n-grams that none of its siblings has: 0 if it has none of its own, 1 if all.

    Counted are different n-grams, so that repeating a new one gains nothing. A completion of fewer than `n` words is
    one n-gram, which is sought in its siblings. A row without siblings gets `None`. A completion without words gets 0,
    the worst, or a policy could differ by saying nothing. `n` is 2 by default.
    """

    def compare(self, tokens: Sequence[Sequence[str]]) -> list[float]:
        orders = [min(self.n, len(own)) for own in tokens]
        having = {n: Counter(chain.from_iterable(set(ngrams(own, n)) for own in tokens)) for n in set(orders)}
        values = []
        for own, n in zip(tokens, orders, strict=True):
            different = set(ngrams(own, n))
            values.append(sum(having[n][gram] == 1 for gram in different) / len(different))
        return values


def _two_highest(grams: Sequence[Mapping[tuple, int]]) -> dict[tuple, tuple[int, int, int]]:
    """For each n-gram its highest count in a row, that row, and the highest count in any other row."""
    most: dict[tuple, tuple[int, int, int]] = {}
    for row, own in enumerate(grams):
        for gram, count in own.items():
            highest, holder, second = most.get(gram, (0, row, 0))
            if count > highest:
                most[gram] = (count, row, highest)
            elif count > second:
                most[gram] = (highest, holder, count)
    return most


def _closest(length: int, lengths: Counter[int]) -> int:
    """The length of the sibling that is closest in length, of two the shorter: BLEU's effective reference length."""
    others = [other for other, count in lengths.items() if count > (other == length)]
    return min(others, key=lambda other: (abs(other - length), other), default=0)
