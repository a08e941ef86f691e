"""Spelling and acceptability as rewards."""

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rlhf_recipes.imports import optional
from rlhf_recipes.rewards.rules import Rule
from rlhf_recipes.texts import Text, as_text
from rlhf_recipes.words import is_blank

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


# pyspellchecker's dictionaries, and the script of each as Unicode's character names begin.
SCRIPT_OF = dict.fromkeys(("de", "en", "es", "eu", "fr", "it", "lv", "nl", "pt"), "LATIN")
SCRIPT_OF |= {"ar": "ARABIC", "fa": "ARABIC", "ru": "CYRILLIC"}

# The zero-width non-joiner stands inside of Persian words.
WORD = re.compile(r"[^\W_]+(?:['’\u200c-][^\W_]+)*")
JOINER = re.compile(r"['\u200c-]")
ADDRESS = ("://", "@", "www.")

# A word after one of these may be capitalized for its place in the sentence.
SENTENCE_START = frozenset('.!?:;\n"“„«([。！？')
Measure = Literal["slor", "mean", "pen"]


@dataclass(frozen=True)
class Spelling(Rule):
    """The share of the completion's words that a dictionary knows, from 0 to 1.

    A word is known if the dictionary has it, whatever its case, or has each of the parts between its hyphens and
    apostrophes: `well-known`, `l'homme`. Left out are words with digits, addresses, and words without a letter of the
    language's script. A completion in which no word is left gets `None`: punctuation alone, or another script. One
    with nothing to see gets 0: it is the worst answer.

    The dictionaries are those of pyspellchecker, lists of frequent forms: rare words and names count as misspelt, and
    so does the last word of a completion that was cut off. A right word in the wrong place is not seen. A text in
    another language of the same script mostly gets a low value (but Basque and Latvian lists hold many English words).

    Args:
        language (`str`, *optional*, defaults to `"en"`):
            One of ar, de, en, es, eu, fa, fr, it, lv, nl, pt, ru.
        extra (`Sequence[str]`, `str` or `Path`, *optional*):
            More words that are right: a list, or a text file with one on each line.
        skip_names (`bool`, *optional*):
            Whether to leave out a word that the dictionary does not know, if it is capitalized inside of a sentence.
            Errors can hide behind capitals then. Default: yes, but not in German, which capitalizes its nouns.
    """

    language: str = "en"
    extra: Sequence[str] | str | Path = ()
    skip_names: bool | None = None
    may_not_apply: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.language not in SCRIPT_OF:
            raise ValueError(
                f"Spelling has no dictionary of {self.language!r}. It has {', '.join(sorted(SCRIPT_OF))}."
            )
        optional("spellchecker", "Spelling", package="pyspellchecker")
        listed = _read_lines(Path(self.extra)) if isinstance(self.extra, (str, Path)) else self.extra
        # Kept as words, so that a pickle needs no file.
        object.__setattr__(self, "extra", tuple(_plain(word).lower() for word in listed))

    def score(self, text: str) -> float | None:
        if is_blank(text):
            return 0.0
        plain = re.sub(r"\S+", _without_address, _plain(text))
        judged, end = [], 0
        for match in WORD.finditer(plain):
            starts = end == 0 or not SENTENCE_START.isdisjoint(plain[end : match.start()])
            judged.append(self._knows(match.group(), starts))
            end = match.end()
        known = [value for value in judged if value is not None]
        return sum(known) / len(known) if known else None

    def _knows(self, word: str, starts_sentence: bool) -> bool | None:
        """Whether a word is right; `None` where it is not to be judged."""
        script = SCRIPT_OF[self.language]
        if any(map(str.isdigit, word)) or not any(_script(character) == script for character in word):
            return None
        dictionary, extra = _dictionary(self.language), self.extra
        assert isinstance(extra, tuple)
        lower = word.lower()
        if lower in dictionary or lower in extra or all(part in dictionary for part in JOINER.split(lower)):
            return True
        skip_names = self.language != "de" if self.skip_names is None else self.skip_names
        return None if skip_names and word[0].isupper() and not starts_sentence else False


def _plain(text: str) -> str:
    """Composed letters, one apostrophe, and none of the marks that only some write (the vowels of Arabic)."""
    composed = unicodedata.normalize("NFKC", text).replace("’", "'")
    return composed if composed.isascii() else "".join(c for c in composed if unicodedata.category(c) != "Mn")


def _without_address(chunk: re.Match[str]) -> str:
    return "" if any(sign in chunk.group() for sign in ADDRESS) else chunk.group()


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no text file at {str(path)!r} (looked for {path.absolute()}).")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@functools.cache
def _dictionary(language: str) -> Any:
    # Read once, and only where the reward is used: up to half a second and some hundred thousand words.
    return optional("spellchecker", "Spelling", package="pyspellchecker").SpellChecker(language=language)


@functools.cache
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0] if character.isalpha() else ""


class Acceptability:
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

    A completion of white space alone, the empty one among them, gets `None`. A model that gives NaN stops the run
    (`RewardError`). It knows the languages that the model knows. What is probable is not yet good: repetition is.

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
        processing_class (`str`, `Path` or `PreTrainedTokenizerBase`, *optional*):
            The model's tokenizer, or where it lies. Default: that of `model`. It must be a fast one.
        batch_size (`int`, *optional*, defaults to 16):
            Texts in one forward pass.
        max_length (`int`, *optional*):
            Tokens of prompt and completion that the model reads. A longer text loses its beginning; of a completion
            that is longer, what is left is scored. Default: all that the model can.
        device (`str` or `torch.device`, *optional*):
            Where to put the model. Default: this process's GPU, or the CPU where there is none.
        dtype (`str` or `torch.dtype`, *optional*):
            Precision to load in. Default: that of the files on a GPU, float32 on a CPU.
        name (`str`, *optional*, defaults to `"Acceptability"`):
            What logs show.
    """

    may_not_apply = True

    def __init__(
        self,
        model: "str | Path | torch.nn.Module",
        measure: Measure = "slor",
        corpus: Sequence[str] | str | Path | None = None,
        alpha: float = 0.8,
        on_prompt: bool = True,
        processing_class: "str | Path | PreTrainedTokenizerBase | None" = None,
        batch_size: int = 16,
        max_length: int | None = None,
        device: "str | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        name: str | None = None,
    ) -> None:
        # Spelling needs neither torch nor transformers.
        from transformers import AutoModelForCausalLM

        from rlhf_recipes.modeling.frozen import FrozenModel, check_batch_size

        self._arguments = (
            model, measure, corpus, alpha, on_prompt, processing_class, batch_size, max_length, device, dtype, name
        )  # fmt: skip
        if measure not in ("slor", "mean", "pen"):
            raise ValueError(f"Acceptability measures 'slor', 'mean' or 'pen', not {measure!r}.")
        if corpus is not None and measure != "slor":
            raise ValueError(f"A corpus is for 'slor'; {measure!r} has no use for it. Leave it out.")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha is {alpha}; it must be 0 or more, and finite.")
        check_batch_size(batch_size)
        self.measure = measure
        self.alpha = alpha
        self.on_prompt = on_prompt
        self.batch_size = batch_size
        self.__name__ = name or type(self).__name__
        self.reader = FrozenModel(
            AutoModelForCausalLM, model, processing_class, max_length, device, dtype, needs_offsets=True
        )
        self.unigrams = self._unigrams(corpus) if measure == "slor" else []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float | None]:
        """Score each completion. `(B,)`"""
        from rlhf_recipes.modeling.reading import check_finite
        from rlhf_recipes.rewards.fluency import token_logprobs

        if not self.on_prompt:
            prompts = [""] * len(completions)
        logprobs = token_logprobs(
            self.reader.model, self.reader.tokenizer, prompts, completions, self.batch_size, self.reader.max_length
        )
        values = [self._value(*row) for row in zip(prompts, completions, logprobs, strict=True)]
        check_finite(values, self.__name__, prompts, completions)
        return values

    def __repr__(self) -> str:
        return f"Acceptability(name={self.__name__!r}, measure={self.measure!r}, on_prompt={self.on_prompt})"

    def _value(self, prompt: Text, completion: Text, logprobs: Sequence[float]) -> float | None:
        if not logprobs or not as_text(completion).strip():
            return None
        total, length = math.fsum(logprobs), len(logprobs)
        if self.measure == "pen":
            return total / ((5 + length) / 6) ** self.alpha
        if self.measure == "slor":
            total -= math.fsum(self.unigrams[token] for token in self._tokens(prompt, completion)[-length:])
        return total / length

    def _tokens(self, prompt: Text, completion: Text) -> list[int]:
        """The completion's tokens, as `token_logprobs` scores them."""
        from rlhf_recipes.modeling.reading import joined, part_to_read

        start, end, special = joined(prompt, completion, self.reader.tokenizer)
        part = part_to_read(start + end, self.reader.tokenizer, self.reader.max_length)
        said = self.reader.tokenizer(
            (start + end)[part], add_special_tokens=special, return_offsets_mapping=True, verbose=False
        )
        spans = zip(said.input_ids, said.offset_mapping, strict=True)
        return [token for token, (_, stop) in spans if stop > len(start) - part.start]

    def _unigrams(self, corpus: Sequence[str] | str | Path | None) -> list[float]:
        """`log P_u` of each token of the vocabulary. `(V,)`"""
        from rlhf_recipes.modeling.reading import first_special, forward, pad_id_of

        model, tokenizer = self.reader.model, self.reader.tokenizer
        if corpus is None:
            logits = forward(model, [[first_special(tokenizer)]], pad_id_of(tokenizer)).logits  # (1, 1, V)
            first: list[float] = logits[0, -1].float().log_softmax(dim=-1).tolist()
            return first
        texts = list(_read_lines(Path(corpus)) if isinstance(corpus, (str, Path)) else corpus)
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []
        counts = Counter(token for ids in encoded for token in ids)
        if not counts:
            raise ValueError("The corpus of Acceptability has no text to count tokens in.")
        size = model.get_input_embeddings().weight.shape[0]
        return [math.log((counts[token] + 1) / (counts.total() + size)) for token in range(size)]
