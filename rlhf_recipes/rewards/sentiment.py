"""Sentiment as a reward: from a lexicon, or from a trained classifier."""

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_recipes.rewards.model_reward import ModelReward
from rlhf_recipes.texts import Text, prompt_and_completion
from rlhf_recipes.words import is_blank

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Vader:
    """VADER's compound score of the text, from -1 (most negative) to 1 (most positive).

    `r = s / sqrt(s^2 + 15)`, where `s` sums the valences of the words, raised or turned by their neighbours (Hutto and
    Gilbert, ICWSM 2014). A lexicon is easy to exploit: a policy soon learns to pile up praise.

    It knows English words, emoticons and emoji. A text in which it knows nothing gets 0, as VADER has it: English
    without any feeling, punctuation alone, most texts of other languages. A text with nothing to see, such as an empty
    one, gets -1: it is the worst answer.

    10,000 words, half of them praise, take 0.1 s, and 0.6 s where there is a "but" in them (CPU time, measured).

    Args:
        completion_only (`bool`, *optional*, defaults to `False`):
            Whether to leave out the prompt. By default prompt and completion are scored as one text.
        name (`str`, *optional*, defaults to `"Vader"`):
            What logs show.
    """

    completion_only: bool = False
    name: str = "Vader"

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float | None]:
        analyzer = _analyzer()
        values: list[float | None] = []
        for text in _texts(prompts, completions, self.completion_only):
            values.append(-1.0 if is_blank(text) else analyzer.polarity_scores(text)["compound"])
        return values


class SentimentClassifier(ModelReward):
    """How much more likely a classifier takes the text for positive than for negative, from -1 to 1.

    `r = sum_k w_k p_k`, where `p` are the model's probabilities: the softmax of its logits over all labels, or of a
    model for several labels at once the sigmoid of each. By default `w` is 1 for the
    positive label, -1 for the negative one and 0 for all others, so that `r = P(positive) - P(negative)`. It knows the
    languages that the model was trained on, and says something of all others too.

    A text that is longer than the model can read loses its beginning. One with nothing to see, the empty one among
    them, gets the lowest value that there is, since it is the worst answer; punctuation and emoji are left to the
    model. A model that gives NaN stops the run (`RewardError`).

    Args:
        model (`str`, `Path` or `torch.nn.Module`):
            A sequence classifier: a folder, a model id of the Hub, or one that is loaded already.
        positive (`int` or `str`, *optional*), negative (`int` or `str`, *optional*):
            The two labels, by index or by name. Default: the only label whose name begins with "pos" or "neg", in any
            case.
        weights (`Mapping`, *optional*):
            The weight of each label, by index or by name, instead of `positive` and `negative`; for a model of stars
            `{"1 star": -1, "2 stars": -0.5, "4 stars": 0.5, "5 stars": 1}`. A label that is left out has 0.
        completion_only (`bool`, *optional*, defaults to `False`):
            Whether to leave out the prompt. By default prompt and completion are scored as one text.
        processing_class, batch_size, max_length, device, dtype, name: as in [`ModelReward`].

    Raises:
        `ValueError`: if the model does not have the labels, or has one alone.

    Example:

    ```python
    reward = SentimentClassifier("distilbert/distilbert-base-uncased-finetuned-sst-2-english", completion_only=True)
    ```
    """

    shown = ("weights",)

    def __init__(
        self,
        model: "str | Path | torch.nn.Module",
        positive: int | str | None = None,
        negative: int | str | None = None,
        weights: Mapping[int | str, float] | None = None,
        completion_only: bool = False,
        processing_class: "str | Path | PreTrainedTokenizerBase | None" = None,
        batch_size: int = 32,
        max_length: int | None = None,
        device: "str | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        name: str | None = None,
    ) -> None:
        from rlhf_recipes.modeling.heads import LabelScore  # VADER needs no torch
        from rlhf_recipes.rewards.learned import LearnedReward

        self.__name__ = name or type(self).__name__
        self.completion_only = completion_only
        self.reward = LearnedReward(
            model, processing_class, batch_size, max_length, label=0, name=self.__name__, calibrate=False,
            device=device, dtype=dtype,
        )  # fmt: skip
        config = self.reward.model.config
        self.weights = _weights_of(list(config.id2label.values()), positive, negative, weights)
        self.reward.head = head = LabelScore(config, None, self.weights, True)  # now that the labels are known
        # Probabilities of labels that are apart may all be 0 or 1; others add up to 1, and so are a mean of weights.
        negative_ones = head.weights.clamp(max=0.0)
        self.lowest = float(negative_ones.sum() if head.labels_are_apart else head.weights.min())

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float | None]:
        """Score each text. `(B,)`"""
        texts = _texts(prompts, completions, self.completion_only)
        values = self.reward(prompts=[""] * len(texts), completions=texts)
        return [self.lowest if is_blank(text) else value for value, text in zip(values, texts, strict=True)]


def _texts(prompts: Sequence[Text], completions: Sequence[Text], completion_only: bool) -> list[str]:
    parts = [prompt_and_completion(*row) for row in zip(prompts, completions, strict=True)]
    return [end if completion_only else start + end for start, end in parts]


def _weights_of(
    labels: Sequence[str],
    positive: int | str | None,
    negative: int | str | None,
    weights: Mapping[int | str, float] | None,
) -> dict[int | str, float]:
    if len(labels) < 2:
        raise ValueError(f"The model has one label, {labels[0]}, so its probability is always 1. Use LearnedReward.")
    if weights is None:
        weights = {
            _named(labels, "positive") if positive is None else positive: 1.0,
            _named(labels, "negative") if negative is None else negative: -1.0,
        }
    elif positive is not None or negative is not None:
        raise ValueError("SentimentClassifier was given weights, and positive or negative as well. Give either.")
    if len(weights) < 2:
        raise ValueError(f"SentimentClassifier weighs one label alone, {dict(weights)}. Give two or more.")
    return dict(weights)


def _named(labels: Sequence[str], side: str) -> str:
    found = [label for label in labels if label.lower().startswith(side[:3])]
    if len(found) != 1:
        raise ValueError(
            f"The model's labels are {', '.join(labels)}, of which {len(found)} begin with {side[:3]!r}: say by "
            f"{side} which one is {side}, or give the weights of all."
        )
    return found[0]


@functools.cache
def _analyzer() -> Any:
    # Its lexicon of 7,500 lines is read once, and only where the reward is used.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    class Analyzer(SentimentIntensityAnalyzer):
        def sentiment_valence(self, valence: float, sentitext: Any, item: str, i: int, sentiments: list) -> list:
            # Of the words around, VADER looks at three before and two after, but copies all of them for each word that
            # it knows: a text of 10,000 words would take 7 s.
            first = max(0, i - 3)
            near = copy.copy(sentitext)
            near.words_and_emoticons = sentitext.words_and_emoticons[first : i + 3]
            valences: list = super().sentiment_valence(valence, near, item, i - first, sentiments)
            return valences

    return Analyzer()
