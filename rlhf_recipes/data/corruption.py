r"""Spoil sentences, so that a policy can learn to restore them and every prompt has a reference to compare with.

    python -m rlhf_recipes.data.starter
    python -m rlhf_recipes.data.corruption --dataset_name starter/movie-ratings --output_dir starter/restoring

A sentence passes three stages, each one function: neighbours change places, words are dropped, and letters of words go
wrong. Each row of the output has the columns

- `prompt`: the corrupted sentence between two fixed lines, ready for a policy that continues texts;
- `completion`: a space and the original, what supervised fine-tuning learns;
- `reference`: the original, what a reward compares with;
- `corrupted`: the corrupted sentence alone, what copying the input would answer.

The splits are those of the dataset: a sentence of the test split is in no other. What happens to a row depends on the
seed, the split and the row's text alone, so rows may be added or shuffled.
"""

import hashlib
import logging
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.data.columns import require_columns
from rlhf_recipes.data.loading import load_rows
from rlhf_recipes.data.preprocessing import deduplicate, tidy_text
from rlhf_recipes.outputs import write_jsonl
from rlhf_recipes.starting.options import option

logger = logging.getLogger(__name__)
PROMPT = "Wrong: {}\nRight:"

# A misspelling needs letters to work on; with fewer than this many, what was meant can hardly be told.
MIN_LETTERS = 4
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Corruption:
    """How much goes wrong. Each rate is a chance for each word (for each pair of neighbours, of `swap_rate`).

    In a misspelt word one letter is left out, doubled, exchanged with the one before, or replaced by one of a to z.
    Words with fewer than four letters are spared, and so are first letters.

    Raises:
        `ValueError`: if a rate is not within 0 and 1.
    """

    drop_rate: float = 0.03  # words that are left out; one is always kept
    swap_rate: float = 0.06  # words that change places with the next one; a word moves once at most
    misspell_rate: float = 0.25

    def __post_init__(self) -> None:
        for name in ("drop_rate", "swap_rate", "misspell_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; a rate is a number from 0 to 1.")


def corrupt(text: str, rng: random.Random, corruption: Corruption = Corruption()) -> str:
    """Spoil one text. The same text and the same state of `rng` give the same result.

    Words are what stands between white space, so punctuation moves and goes with its word. A text without words comes
    back empty, one of a single word is at most misspelt. [`row_rng`] makes the source of chance for a row.
    """
    words = swap_neighbours(text.split(), rng, corruption.swap_rate)
    words = drop_words(words, rng, corruption.drop_rate)
    return " ".join(misspell(word, rng) if rng.random() < corruption.misspell_rate else word for word in words)


def row_rng(seed: int, *row: object) -> random.Random:
    """A source of chance for one row, the same in every process: keyed by the seed and by what names the row."""
    key = "\x1f".join(map(str, (seed, *row)))
    return random.Random(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest())


def swap_neighbours(words: Sequence[str], rng: random.Random, rate: float) -> list[str]:
    """Let neighbours change places; a pair that has done so is passed over, so that no word wanders."""
    swapped = list(words)
    place = 0
    while place < len(swapped) - 1:
        if rng.random() < rate:
            swapped[place : place + 2] = swapped[place + 1], swapped[place]
            place += 1
        place += 1
    return swapped


def drop_words(words: Sequence[str], rng: random.Random, rate: float) -> list[str]:
    """Leave words out; where chance takes all of them, the first stays."""
    return [word for word in words if rng.random() >= rate] or list(words[:1])


def misspell(word: str, rng: random.Random) -> str:
    """Let one letter go wrong, never the first. Words of fewer than four letters come back as they are."""
    letters = [place for place, character in enumerate(word) if character.isalpha()]
    if len(letters) < MIN_LETTERS:
        return word
    place = rng.choice(letters[1:])
    before, letter, after = word[:place], word[place], word[place + 1 :]
    kind = rng.choice(("omit", "double", "exchange", "replace"))
    if kind == "omit":
        return before + after
    if kind == "double":
        return before + letter + letter + after
    neighbour = before[-1]
    if kind == "exchange" and place > letters[1] and neighbour.isalpha() and neighbour != letter:
        return before[:-1] + letter + neighbour + after
    return before + rng.choice([other for other in ALPHABET if other != letter.lower()]) + after


@dataclass
class CorruptionArguments:
    """Which sentences are spoilt, and how much."""

    help_title = "Corruption"

    dataset_name: str = option("starter/movie-ratings", "A folder, a file or a dataset id of the Hub, with texts.")
    output_dir: str = option("starter/restoring", "Folder for one JSONL file per split.")
    text_column: str = option("completion", "Column with the texts.")
    splits: list[str] = option(["train", "validation", "test"], "Splits to take; they keep their names.")
    min_words: int = option(5, "Shorter texts are left out.")
    max_words: int = option(14, "Longer texts are left out.")
    drop_rate: float = option(Corruption.drop_rate, "Chance of a word to be left out.")
    swap_rate: float = option(Corruption.swap_rate, "Chance of a word to change places with the next.")
    misspell_rate: float = option(Corruption.misspell_rate, "Chance of a word of four letters or more to be misspelt.")
    seed: int = option(0, "Seed of the corruption.")

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words:
            raise ValueError(
                f"min_words is {self.min_words} and max_words {self.max_words}; give 1 or more, and no fewer at most "
                "than at least."
            )
        self.corruption = Corruption(self.drop_rate, self.swap_rate, self.misspell_rate)


def restoring_rows(texts: Sequence[str], split: str, args: CorruptionArguments) -> Iterator[dict[str, str]]:
    """A row for each text of the wanted length that chance does not leave as it is; of equal texts, for the first."""
    rows, _ = deduplicate(({"text": tidy_text(text)} for text in texts), "text")
    for row in rows:
        text = row["text"]
        if args.min_words <= len(text.split()) <= args.max_words:
            corrupted = corrupt(text, row_rng(args.seed, split, text), args.corruption)
            if corrupted != text:
                yield {
                    "prompt": PROMPT.format(corrupted),
                    "completion": f" {text}",
                    "reference": text,
                    "corrupted": corrupted,
                }


def main(argv: Sequence[str] | None = None) -> None:
    parser = RecipeParser((CorruptionArguments,), __doc__)
    (args,) = parser.parse(argv)
    for split in args.splits:
        rows = load_rows(args.dataset_name, split)
        require_columns(rows, [args.text_column], "Corruption")
        made = list(restoring_rows([text for text in rows[args.text_column] if text], split, args))
        file = Path(args.output_dir) / f"{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(file, made)
        sys.stdout.write(f"{file}: {len(made)} of {len(rows)} texts\n")


if __name__ == "__main__":
    main()
