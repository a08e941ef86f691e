"""Potentials for potential-based reward shaping: what a completion is worth so far, told before it is finished.

A potential Phi is a number for each state, a state being the prompt and the tokens so far. The trainer pays
`F_t = gamma * Phi(s_{t+1}) - Phi(s_t)` with each token, with its own gamma and with Phi = 0 after the last token
(`shaping_rewards` in `rlhf_recipes/ppo/functional.py`; Ng, Harada and Russell, ICML 1999). The discounted sum of a
completion is then `-Phi(s_0)`, whatever was written: policies are ordered as without shaping, and the best one stays
the best. What changes is how soon a token learns what it is worth. So a potential adds nothing by itself: it stands in
a list beside the reward that is wanted.

Texts of unfinished completions are decoded from token ids, without special tokens, as the trainer decodes whole ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_recipes.rewards.compute import tokenizer_of
from rlhf_recipes.rewards.contract.checks import check_setting, checked_call, reward_name
from rlhf_recipes.rewards.loading import inner_reward
from rlhf_recipes.rewards.rules import column_values
from rlhf_recipes.texts import Text

# Tokens that are decoded again with the next one, since how a token reads may depend on those before it.
OVERLAP = 16
UNFINISHED = "\ufffd"  # what stands for a character whose bytes are not all there yet

# What no word has in it, so that a text can be read in two parts: before and from there.
BREAKS = " \n\t\r。，！？；：、"


@dataclass(frozen=True)
class Potential:
    """What potentials have in common: a number for each token, a name, and the policy's tokenizer."""

    tokenizer: Any = field(default=None, kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    per_token = True
    potential = True

    @property
    def __name__(self) -> str:
        return self.name or type(self).__qualname__

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            raise ValueError(
                f"{type(self).__name__} reads unfinished completions out of their token ids: give the policy's "
                "tokenizer, a folder or a model id with it, as tokenizer."
            )
        tokenizer_of(self.tokenizer)  # so that one that is not there is told at once


@dataclass(frozen=True)
class KeywordProgress(Potential):
    """The share of keywords that the completion has so far: `Phi = |found| / |keywords|`, from 0 to 1.

    A keyword is found where [`KeywordCoverage`] finds it: its words whole and one after the other, whatever their case
    and the punctuation between them; scripts without spaces are read character by character. Phi of the empty
    completion is 0, so that the whole shaping of a completion adds up to 0. A word that goes on may lose its keyword
    again ("film" of "filming"). The prompt is not searched.

    A row that names no keyword (`None`, an empty list or punctuation alone) gets `None`, which means no shaping.

    Args:
        keywords (`Sequence[str]`, *optional*):
            Keywords of every row.
        column (`str`, *optional*):
            A dataset column with the keywords of its row: a list of texts, or one text. It adds to `keywords`.
        separator (`str`, *optional*):
            What stands between the keywords of a column that holds one text for each row, such as `","`. Default: the
            text is one keyword.
        tokenizer (`str`, `Path` or `PreTrainedTokenizerBase`):
            The policy's tokenizer, or where it lies.

    Raises:
        `ValueError`: if there is no tokenizer or nothing to look for, or a keyword has no letter, digit or emoji;
            while scoring, if the dataset lacks the column.
    """

    keywords: Sequence[str] | None = None
    column: str | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.keywords, str):
            raise ValueError(f"KeywordProgress takes keywords as a list, but was given {self.keywords!r}.")
        wordless = [keyword for keyword in self.keywords or () if not _phrases([keyword])]
        if wordless:
            raise ValueError(f"The keyword {wordless[0]!r} of KeywordProgress has no letter, digit or emoji.")
        if not (self.keywords or self.column):
            raise ValueError("KeywordProgress has nothing to look for: give keywords, column or both.")

    def __call__(
        self, completions: Sequence[Text], completion_ids: Sequence[Sequence[int]], **columns: Any
    ) -> list[list[float] | None]:
        wanted = [_phrases(self.keywords)] * len(completion_ids)
        if self.column is not None:
            own = column_values(columns, self.column, self.__name__)
            wanted = [_phrases(self.keywords, self._of_row(value)) for value in own]
        tokenizer = tokenizer_of(self.tokenizer)
        return [
            _shares_found(ids, phrases, tokenizer) if phrases else None
            for ids, phrases in zip(completion_ids, wanted, strict=True)
        ]

    def _of_row(self, value: str | Sequence[str] | None) -> Sequence[str] | None:
        if isinstance(value, str):
            return [value] if self.separator is None else value.split(self.separator)
        return value


@dataclass(frozen=True)
class PrefixScore(Potential):
    """What another reward says of the completion so far: `Phi = scale * reward(prompt, prefix)`.

    The reward sees each prefix as a completion of its own, with its text, its ids and the row's columns. With
    `every=k` it sees the prefixes of 0, k, 2k, ... tokens, and Phi stays as it was in between. All prefixes of all
    rows go to it in one call, so that a model can batch them. A reward model that was trained on unfinished texts is
    the natural choice; any other is read as a guess of what the whole will earn, and a bad guess costs speed, not
    correctness. Range and unit are the reward's, times `scale`.

    Phi(s_0) is the reward of the empty completion, which it has to have an answer to. Where the reward does not apply
    to a prefix (`None`), Phi is that of the last prefix to which it does, 0 before any; where it applies to none, the
    row gets `None`, which means no shaping. The bytes of a character that is not complete are left out.

    A reward that compares the completions of a prompt (diversity) would compare prefixes of one completion here. Use
    it by itself.

    Args:
        reward (callable, `str` or `dict`):
            A reward with one number for each completion, or what a YAML file says of one: a name, a model's folder, or
            a dictionary with `func` and, where wanted, `name` and `args`.
        every (`int`, *optional*, defaults to 1):
            Tokens from one prefix that is scored to the next.
        scale (`float`, *optional*, defaults to 1.0):
            What the reward is multiplied with.
        tokenizer (`str`, `Path` or `PreTrainedTokenizerBase`):
            The policy's tokenizer, or where it lies.

    Raises:
        `ValueError`: if there is no tokenizer, a setting is not what it can be, or the reward is per token.
        `RewardError`: while scoring, if the reward raises, or returns NaN or infinity.

    Example:

    ```yaml
    - {func: PrefixScore, args: {reward: runs/quickstart/reward, every: 4, scale: 0.5, tokenizer: starter/policy}}
    ```
    """

    reward: Any
    every: int = 1
    scale: float = 1.0
    scorer: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("PrefixScore", "every", self.every, least=1, whole=True)
        check_setting("PrefixScore", "scale", self.scale)
        object.__setattr__(self, "scorer", inner_reward(self.reward, "the reward of PrefixScore"))
        for attribute in ("wants_prompt_ids", "wants_ref_logprobs", "constant"):
            object.__setattr__(self, attribute, bool(getattr(self.scorer, attribute, False)))

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> list[list[float] | None]:
        tokenizer = tokenizer_of(self.tokenizer)
        cuts: list[tuple[int, int]] = []  # row and number of tokens of each prefix
        texts: list[Text] = []
        for row, ids in enumerate(completion_ids):
            for count, (text, _) in enumerate(prefix_texts(ids, tokenizer)):
                if count % self.every == 0:
                    cuts.append((row, count))
                    texts.append(_like(completions[row], text))
        batch = {
            "prompts": [prompts[row] for row, _ in cuts],
            "completions": texts,
            "completion_ids": [list(completion_ids[row][:count]) for row, count in cuts],
            **_spread(columns, cuts, len(completion_ids)),
        }
        values = checked_call(self.scorer, reward_name(self.scorer), batch) if cuts else []
        by_row: list[list[float | None]] = [[] for _ in completion_ids]
        for (row, _), value in zip(cuts, values, strict=True):
            by_row[row].append(value)
        return [self._of_tokens(known, len(ids)) for known, ids in zip(by_row, completion_ids, strict=True)]

    def _of_tokens(self, values: list[float | None], count: int) -> list[float] | None:
        """Phi before each of `count` tokens, from the values of the prefixes that were scored."""
        if values and all(value is None for value in values):
            return None
        last, filled = 0.0, []
        for value in values:
            last = last if value is None else self.scale * value
            filled.append(last)
        return [filled[token // self.every] for token in range(count)]


def prefix_texts(ids: Sequence[int], tokenizer: Any) -> Iterator[tuple[str, int]]:
    """The text before each token of a completion: of no token, of the first, of the first two, and so on.

    Each depends on the tokens before it alone. They are decoded piece by piece, with an overlap, so that the work
    grows with the length and not with its square. A prefix is read from its start where the tokenizer tidies up
    spaces, or where its last token changes what stood before.

    Yields:
        `tuple[str, int]`: the text, and how many of its characters later texts begin with, as a rule.
    """
    tidies = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
    # `known` is what the tokens from `start` to `end` read as; `settled` is the text of all tokens before `end`.
    start = end = 0
    known = settled = ""
    in_doubt = tidies
    for count in range(len(ids)):
        piece = "" if tidies else tokenizer.decode(list(ids[start:count]), skip_special_tokens=True)
        text = settled + piece[len(known) :]
        if in_doubt or not piece.startswith(known):
            whole = tokenizer.decode(list(ids[:count]), skip_special_tokens=True)
            in_doubt = tidies or whole != text
            if in_doubt:
                yield whole.rstrip(UNFINISHED), 0
                continue
        if count - end >= OVERLAP and not piece.endswith(UNFINISHED):
            start, end, settled = end, count, text
            known = tokenizer.decode(list(ids[start:end]), skip_special_tokens=True)
        yield text.rstrip(UNFINISHED), len(settled)


def _shares_found(ids: Sequence[int], phrases: Sequence[list[str]], tokenizer: Any) -> list[float]:
    """The share of phrases in the text before each token. Text that is settled is read once."""
    from rlhf_recipes.words import words

    reach = max(map(len, phrases)) - 1  # words that a phrase may have in the part that was read before
    read, recent = 0, list[str]()
    kept: set[int] = set()
    shares = []
    for text, settled in prefix_texts(ids, tokenizer):
        if settled < read:  # what was read may read differently now
            read, recent, kept = 0, [], set()
        cut = 1 + max(text.rfind(sign, read, settled) for sign in BREAKS)
        if cut > read:
            recent += words(text[read:cut])
            kept |= _found(recent, phrases)
            read, recent = cut, recent[len(recent) - min(reach, len(recent)) :]
        here = kept | _found(recent + words(text[read:]), phrases)
        shares.append(len(here) / len(phrases))
    return shares


def _found(tokens: Sequence[str], phrases: Sequence[list[str]]) -> set[int]:
    text = f" {' '.join(tokens)} "
    return {number for number, phrase in enumerate(phrases) if f" {' '.join(phrase)} " in text}


def _phrases(*keywords: Sequence[str] | None) -> list[list[str]]:
    """The words of each keyword, one that is there twice and one without words left out."""
    from rlhf_recipes.words import words

    found = [tuple(words(keyword)) for group in keywords for keyword in group or () if keyword]
    return [list(phrase) for phrase in dict.fromkeys(found) if phrase]


def _like(completion: Text, text: str) -> Text:
    if isinstance(completion, str):
        return text
    role = completion[-1].get("role", "assistant") if completion else "assistant"
    return [{"role": role, "content": text}]


def _spread(columns: dict[str, Any], cuts: Sequence[tuple[int, int]], rows: int) -> dict[str, Any]:
    """The columns of each prefix: those of its row, and of what belongs to tokens as much as it has."""
    spread = {}
    for name, values in columns.items():
        if name in ("log_metric", "log_extra"):  # a table has one line for each completion, not for each prefix
            continue
        if name == "ref_logprobs" and values is not None:
            spread[name] = [None if values[row] is None else values[row][:count] for row, count in cuts]
        elif isinstance(values, (list, tuple)) and len(values) == rows:
            spread[name] = [values[row] for row, _ in cuts]
        else:
            spread[name] = values
    return spread
