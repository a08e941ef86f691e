"""Sentiment as a reward, from a lexicon."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_recipes.rewards.base import Text, as_text


@dataclass(frozen=True)
class Vader:
    """VADER's compound score of the text, from -1 (most negative) to 1 (most positive); 0 for a text without words.

    `r = s / sqrt(s^2 + 15)`, where `s` sums the valences of the words, raised or turned by their neighbours (Hutto and
    Gilbert, ICWSM 2014). A lexicon is easy to exploit: a policy soon learns to pile up praise. English alone.

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

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float]:
        texts = [as_text(completion) for completion in completions]
        if not self.completion_only:
            texts = [_joined(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        analyzer = _analyzer()
        return [analyzer.polarity_scores(text)["compound"] for text in texts]


def _joined(prompt: Text, text: str) -> str:
    # A completion goes on in the middle of a plain prompt; the messages of a conversation stand apart.
    return prompt + text if isinstance(prompt, str) else f"{as_text(prompt)}\n{text}"


@functools.cache
def _analyzer() -> Any:
    # Its lexicon of 7,500 lines is read once, and only where the reward is used.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
