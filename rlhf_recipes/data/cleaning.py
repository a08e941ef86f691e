"""Preparing rows for training in named steps, each of which returns rows and counts.

    steps = steps_from(CleaningArguments(deduplicate=True, near_duplicates=0.8), held_out=test_rows)
    rows, table = run(steps, rows)
    print(table)

A step is any callable `step(dataset) -> (dataset, counts)` with a `name`. Those here are frozen dataclasses. What
they do depends on the rows, their settings and a seed, never on the time or the machine. No step leaves out or changes
a row without counting it.
"""

import functools
import json
import random
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from datasets import Dataset, concatenate_datasets

from rlhf_recipes.data.corruption import drop_words, row_rng
from rlhf_recipes.data.formats import is_blank, is_conversational, require_columns
from rlhf_recipes.data.preprocessing import SPLITS, normalize_text, split_of, tidy_text
from rlhf_recipes.rewards.base import as_text
from rlhf_recipes.rewards.optional import optional
from rlhf_recipes.rewards.rules import Language

TEXT_COLUMNS = ("prompt", "completion", "completions", "chosen", "rejected")
# What people said of the texts: copies of a text that differ in one of these do not agree.
SAID = (
    "score", "label", "votes", "scores", "ranks", "best", "worst", "labels", "chosen_votes", "rejected_votes",
    "margin", "target", "clicks", "views", "dwell_seconds",
)  # fmt: skip
BATCH = 1000
SEPARATOR = "\x1f"  # between the texts of a row, which then cannot run into each other
SHINGLE = 5  # characters; a change of one letter touches five shingles
HIGHEST = 0.95  # of the hashed index, which has too few bands for more; candidates are compared exactly anyway
ENGLISH = "english"
JOINERS = frozenset("'\u2019-\u2010\u2011")  # apostrophes and hyphens
WORD = re.compile(r"(\w+(?:['\u2019-]\w+)*)\s*")

Edit: TypeAlias = Callable[[str], str]


@dataclass
class CleaningArguments:
    """What is done to rows before training. Without options only line ends and Unicode are made alike.

    Args:
        tidy (`str`, *optional*, defaults to `"light"`):
            `"light"` makes line ends and composed accents alike (Unicode NFC) and takes NUL out. `"full"` also decodes
            HTML entities and makes every run of white space, line breaks too, one space. `"off"` does nothing.
        lowercase (`bool`, *optional*, defaults to `False`):
            Make texts lower case.
        remove_punctuation (`bool`, *optional*, defaults to `False`):
            Take out punctuation of all scripts, but not apostrophes and hyphens inside words.
        stop_words (`str`, *optional*):
            Take these words out: a file with one on each line, or `english` for the list of scikit-learn.
        min_characters (`int`, *optional*), max_characters (`int`, *optional*):
            Leave out rows with a shorter or longer text; prompts do not count.
        language (`str`, *optional*):
            Leave out rows in another language, an ISO 639-1 code such as `en`.
        language_threshold (`float`, *optional*, defaults to 0.5):
            The probability of the language from which on a text is taken to be in it.
        deduplicate (`bool`, *optional*, defaults to `False`):
            Keep the first of all rows with the same texts.
        near_duplicates (`float`, *optional*):
            Keep the first of all rows whose texts have that similarity or more, such as 0.8.
        key_columns (`list[str]`, *optional*):
            The columns by which rows are the same. Default: all texts.
        balance_labels (`bool`, *optional*, defaults to `False`):
            Leave out rows of the more frequent label until both are equal.
        swap_pairs (`bool`, *optional*, defaults to `False`):
            Let chosen and rejected change places in half of the rows with a soft label, which turns with them.
        word_dropout (`float`, *optional*, defaults to 0):
            Add a copy of each row in which that share of words is missing.
        cleaning_seed (`int`, *optional*, defaults to 0):
            Of all that is drawn.

    Raises:
        `ValueError`: if a number is out of its range.
    """

    help_title = "Cleaning"

    tidy: str = field(
        default="light",
        metadata={"help": "light: line ends and accents alike. full: HTML entities and white space too. off."},
    )
    lowercase: bool = field(default=False, metadata={"help": "Make texts lower case."})
    remove_punctuation: bool = field(default=False, metadata={"help": "Take punctuation out of texts."})
    stop_words: str | None = field(
        default=None, metadata={"help": "Words to take out: a file with one on each line, or `english`."}
    )
    min_characters: int | None = field(default=None, metadata={"help": "Leave out rows with a shorter text."})
    max_characters: int | None = field(default=None, metadata={"help": "Leave out rows with a longer text."})
    language: str | None = field(
        default=None, metadata={"help": "Leave out rows in another language than this, such as `en`."}
    )
    language_threshold: float = field(
        default=0.5, metadata={"help": "Probability from which on a text is taken to be in the language."}
    )
    deduplicate: bool = field(default=False, metadata={"help": "Keep the first of all rows with the same texts."})
    near_duplicates: float | None = field(
        default=None, metadata={"help": "Keep the first of all rows with this similarity or more, such as 0.8."}
    )
    key_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns by which rows are the same. Default: all texts."}
    )
    balance_labels: bool = field(
        default=False, metadata={"help": "Leave out rows of the more frequent label until both are equal."}
    )
    swap_pairs: bool = field(
        default=False, metadata={"help": "Swap chosen and rejected in half of the rows with a soft label."}
    )
    word_dropout: float = field(
        default=0.0, metadata={"help": "Add a copy of each row in which this share of words is missing."}
    )
    cleaning_seed: int = field(default=0, metadata={"help": "Seed of all that is drawn."})

    def __post_init__(self) -> None:
        if self.tidy not in ("off", "light", "full"):
            raise ValueError(f"tidy is {self.tidy!r}; give 'off', 'light' or 'full'.")
        steps_from(self)  # a step refuses settings that it cannot have


# --- What steps return ------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """What one step did.

    Args:
        before (`int`), after (`int`): Rows.
        changed (`int`): Rows that were kept and are no longer what they were.
        notes (`dict[str, int | str]`): More counts, by what they count.
    """

    before: int
    after: int
    changed: int = 0
    notes: Mapping[str, int | str] = field(default_factory=dict)


class Step(Protocol):
    """A named callable that takes rows and returns rows and counts."""

    @property
    def name(self) -> str: ...

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]: ...


@dataclass(frozen=True)
class Table:
    """What each step did, in order. Printed it is a table, and [`as_json`] gives the same figures."""

    steps: Sequence[tuple[str, Counts]] = ()

    def __str__(self) -> str:
        head = ["step", "before", "after", "left out", "added", "changed", "notes"]
        figures = [_figures(name, counts) for name, counts in self.steps]
        rows = [head, *([_cell(value) for value in row.values()] for row in figures)]
        widths = [max(len(row[place]) for row in rows) for place in range(len(head) - 1)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:]), row[-1]]).rstrip()
            for row in rows
        )

    def as_json(self) -> str:
        """A list of one object for each step."""
        return json.dumps([_figures(name, counts) for name, counts in self.steps], ensure_ascii=False)


def _figures(name: str, counts: Counts) -> dict[str, Any]:
    return {
        "step": name,
        "before": counts.before,
        "after": counts.after,
        "left_out": max(counts.before - counts.after, 0),
        "added": max(counts.after - counts.before, 0),
        "changed": counts.changed,
        "notes": dict(counts.notes),
    }


def _cell(value: Any) -> str:
    return ", ".join(f"{what}: {count}" for what, count in value.items()) if isinstance(value, dict) else str(value)


def run(steps: Sequence[Step], dataset: Dataset) -> tuple[Dataset, Table]:
    """Take rows through steps, one after the other.

    Args:
        steps (`Sequence`): As [`steps_from`] makes them, or of your own.
        dataset ([`~datasets.Dataset`]): The rows.

    Returns:
        `tuple[Dataset, Table]`: the rows that are left, and what each step did.

    Raises:
        `ValueError`: if a step leaves no row, with the table so far.
    """
    dataset = dataset.with_format(None)
    done: list[tuple[str, Counts]] = []
    for step in steps:
        dataset, counts = step(dataset)
        done.append((step.name, counts))
        if not len(dataset):
            raise ValueError(f"The step {step.name!r} leaves no row. Change its settings.\n{Table(done)}")
    return dataset, Table(done)


def steps_from(args: CleaningArguments, held_out: Dataset | None = None) -> list[Step]:
    """The steps that the options ask for, in the order in which they are run.

    Texts are changed first, so that rows which have become the same are seen to be. Rows are added last, so that no
    copy is taken for a duplicate.

    Args:
        args ([`CleaningArguments`]): The options.
        held_out ([`~datasets.Dataset`], *optional*):
            Rows of a test split. What is in them too is taken out of the rows that are cleaned, exact copies always
            and near ones where `near_duplicates` is set. They are compared after the same changes of text.
    """
    tidying = {"light": EditTexts(tidy_light, "tidy (light)"), "full": EditTexts(tidy_text, "tidy (full)")}
    edits: list[Step] = [tidying[args.tidy]] if args.tidy in tidying else []
    edits += [EditTexts(str.lower, "lower case")] if args.lowercase else []
    edits += [EditTexts(remove_punctuation, "punctuation")] if args.remove_punctuation else []
    edits += [EditTexts(read_stop_words(args.stop_words), "stop words")] if args.stop_words else []
    key = None if args.key_columns is None else tuple(args.key_columns)
    steps: list[Step] = [*edits, DropBlank()]
    if args.min_characters is not None or args.max_characters is not None:
        steps.append(Length(args.min_characters, args.max_characters))
    if args.language is not None:
        steps.append(InLanguage(args.language, args.language_threshold))
    if args.deduplicate:
        steps.append(Deduplicate(key))
    if args.near_duplicates is not None:
        steps.append(NearDuplicates(args.near_duplicates, key, seed=args.cleaning_seed))
    if held_out is not None:
        for edit in edits:
            held_out, _ = edit(held_out)
        steps.append(Leakage(held_out, args.near_duplicates, key, seed=args.cleaning_seed))
    steps += [BalanceLabels(args.cleaning_seed)] if args.balance_labels else []
    steps += [SwapPairs(seed=args.cleaning_seed)] if args.swap_pairs else []
    return steps + ([WordDropout(args.word_dropout, args.cleaning_seed)] if args.word_dropout else [])


# --- Changing texts ---------------------------------------------------------------------------


@dataclass(frozen=True)
class EditTexts:
    """A function of a text, applied to every text of every row: prompts, answers, and the content of messages.

    Where the prompt is plain text, so that prompt and answer are read as one, white space between the two stays, as
    one space at least.

    Args:
        edit (callable): Text to text; one that can be pickled.
        name (`str`, *optional*, defaults to `"edit"`): What the table shows.
        columns (`tuple[str, ...]`, *optional*): Default: all columns with texts.
    """

    edit: Edit
    name: str = "edit"
    columns: tuple[str, ...] | None = None

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        columns = text_columns(dataset, self.columns)
        joined = "prompt" in dataset.column_names

        def edited(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            return {
                name: [_edited(value, self.edit, ("end" if name == "prompt" else "start") if joined else None)
                       for value in batch[name]]
                for name in columns
            }  # fmt: skip

        new = dataset.map(edited, batched=True, batch_size=BATCH, desc=self.name)
        return new, Counts(len(dataset), len(new), _count_changed(dataset, new, columns))


def _edited(value: Any, edit: Edit, seam: str | None = None) -> Any:
    """A text, messages, or a list of either, with each text edited."""
    if value is None:
        return None
    if isinstance(value, str):
        new = edit(value)
        if new and seam == "start" and value[:1].isspace() and not new[0].isspace():
            return f" {new}"
        return f"{new} " if new and seam == "end" and value[-1:].isspace() and not new[-1].isspace() else new
    if not is_conversational(value):
        return [_edited(one, edit, seam) for one in value]
    return [message | {"content": _edited_content(message.get("content"), edit)} for message in value]


def _edited_content(content: Any, edit: Edit) -> Any:
    if isinstance(content, list):  # parts, as of a model that sees
        return [part | {"text": edit(part["text"])} if part.get("text") else part for part in content]
    return edit(content) if content else content


def tidy_light(text: str) -> str:
    r"""Make alike what looks alike: line ends become `\n`, accents are composed (Unicode NFC), NUL is taken out."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", ""))


def remove_punctuation(text: str) -> str:
    """Take out what Unicode calls punctuation, in any script; symbols such as $, + and emoji stay.

    An apostrophe or hyphen between two letters or digits is a part of the word and stays. Other punctuation between
    two becomes a space, so that words do not run together; `3.5` falls apart, too. Runs of spaces become one.

    Example:
        >>> remove_punctuation("Well-made, isn't it?Yes!")
        "Well-made isn't it Yes"
    """

    def gap(match: re.Match[str]) -> str:
        inside = text[match.start() - 1 : match.start()].isalnum() and text[match.end() : match.end() + 1].isalnum()
        if inside and match.group() in JOINERS:
            return match.group()
        return " " if inside else ""

    return _squeezed(_punctuation().sub(gap, text))


@functools.cache
def _punctuation() -> re.Pattern[str]:
    marks = (mark for mark in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(mark)[0] == "P")
    return re.compile(f"[{re.escape(''.join(marks))}]+")


def _squeezed(text: str) -> str:
    return re.sub(" {2,}", " ", text).strip(" ")


@dataclass(frozen=True)
class WithoutWords:
    """Takes words out of a text, in whatever case they are written, with the white space behind them.

    Args:
        words (`frozenset[str]`): The words, in lower case.
    """

    words: frozenset[str]

    def __call__(self, text: str) -> str:
        def kept(match: re.Match[str]) -> str:
            return "" if match.group(1).casefold() in self.words else match.group()

        return _squeezed(WORD.sub(kept, text))


def read_stop_words(source: str) -> WithoutWords:
    """Stop words from a file with one on each line, or, for `"english"`, the 318 of scikit-learn.

    Raises:
        `ValueError`: if there is no such file, or no word in it.
    """
    if source == ENGLISH:
        text = optional("sklearn.feature_extraction.text", "stop_words", package="scikit-learn", extra="feedback")
        return WithoutWords(frozenset(text.ENGLISH_STOP_WORDS))
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(
            f"stop_words is {source!r}, which is no file. Give one with a word on each line, or {ENGLISH!r}."
        )
    words = frozenset(
        line.strip().casefold() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    )
    if not words:
        raise ValueError(
            f"The file of stop words {source!r} is empty. Put a word on each line, or leave stop_words out."
        )
    return WithoutWords(words)


# --- Leaving rows out -------------------------------------------------------------------------


@dataclass(frozen=True)
class DropBlank:
    """Leave out rows in which an answer is empty or blank, as it may be after other steps. A prompt may be empty."""

    name: str = "blank"

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        columns = _answers(dataset)
        kept = [number for number, row in _rows(dataset, columns) if not self._blank(row, number)]
        return _selected(dataset, kept)

    def _blank(self, row: Mapping[str, Any], number: int) -> bool:
        values = ((name, value) for name in row for value in _each(row[name], name))
        return any(is_blank(value, name, number) for name, value in values)


@dataclass(frozen=True)
class Length:
    """Leave out rows with an answer that is too short or too long, in characters, which are the same in any language.

    Args:
        minimum (`int`, *optional*), maximum (`int`, *optional*): What is allowed, both included.
    """

    minimum: int | None = None
    maximum: int | None = None
    name: str = "length"

    def __post_init__(self) -> None:
        low, high = self.minimum or 0, self.maximum
        if low < 0 or (high is not None and high < max(low, 1)):
            raise ValueError(
                f"min_characters is {self.minimum} and max_characters {self.maximum}; give 0 or more, and the larger "
                "one as the maximum."
            )

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        kept, notes = [], {"too short": 0, "too long": 0}
        for number, row in _rows(dataset, _answers(dataset)):
            lengths = [len(text) for text in _texts(row)]
            short = min(lengths, default=0) < (self.minimum or 0)
            long = self.maximum is not None and max(lengths, default=0) > self.maximum
            notes["too short"] += short
            notes["too long"] += long
            if not short and not long:
                kept.append(number)
        return _selected(dataset, kept, notes)


@dataclass(frozen=True)
class InLanguage:
    """Leave out rows with an answer in another language, as [`~rlhf_recipes.rewards.rules.Language`] judges it.

    Answers with too few letters to tell pass, and are counted.

    Args:
        language (`str`): An ISO 639-1 code.
        threshold (`float`, *optional*, defaults to 0.5): The probability from which on a text is in it.
        min_letters (`int`, *optional*, defaults to 20): Fewer cannot be told.
    """

    language: str
    threshold: float = 0.5
    min_letters: int = 20
    name: str = "language"

    def __post_init__(self) -> None:
        Language(self.language, threshold=self.threshold, min_letters=self.min_letters)

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        rule = Language(self.language, threshold=self.threshold, min_letters=self.min_letters)
        kept, short = [], 0
        for number, row in _rows(dataset, _answers(dataset)):
            verdicts = [rule.score(text) for text in _texts(row)]
            short += None in verdicts
            if 0.0 not in verdicts:
                kept.append(number)
        return _selected(dataset, kept, {"rows with a text too short to tell": short})


@dataclass(frozen=True)
class Deduplicate:
    """Keep the first of all rows whose texts are the same after `normalize_text`.

    Args:
        columns (`tuple[str, ...]`, *optional*): By which rows are the same. Default: all texts.
    """

    columns: tuple[str, ...] | None = None
    name: str = "duplicates"

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        first: dict[str, int] = {}
        copy_of: dict[int, int] = {}
        for number, key in enumerate(_keys(dataset, self.columns)):
            if first.setdefault(key, number) != number:
                copy_of[number] = first[key]
        return _selected(dataset, list(first.values()), _disagreement(dataset, copy_of))


@dataclass(frozen=True)
class NearDuplicates:
    """Keep the first of all rows that are nearly the same.

    Two texts are compared by the Jaccard similarity of their character 5-grams, after `normalize_text`: what they
    share over what they have in all. Two rows are as similar as those of their texts that differ most, so that two
    answers to one long prompt are not taken for copies.

    MinHash and locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
    chapter 3) find candidates, and the similarity of each is then computed exactly. So no row is left out wrongly, and
    few copies are missed: with the defaults 2% of those at 0.8, and 0.1% of those at 0.85. Rows are compared with
    those that were kept before them, so that their order counts. Look before you leave rows out: short texts that are
    much alike may say the opposite ("one of the best", "one of the worst").

    Args:
        threshold (`float`, *optional*, defaults to 0.8): The similarity from which on rows are copies, up to 1.
        columns (`tuple[str, ...]`, *optional*): By which rows are compared. Default: all texts.
        permutations (`int`, *optional*, defaults to 128): Hashes of a row. More miss less and take longer.
        seed (`int`, *optional*, defaults to 0): Of the hashes.
    """

    threshold: float = 0.8
    columns: tuple[str, ...] | None = None
    permutations: int = 128
    seed: int = 0
    name: str = "near duplicates"

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        index = _Near(self.threshold, self.permutations, self.seed)
        copy_of: dict[int, int] = {}
        for number, key in enumerate(_keys(dataset, self.columns)):
            twin = index.find_or_add(number, key)
            if twin is not None:
                copy_of[number] = twin
        kept = [number for number in range(len(dataset)) if number not in copy_of]
        return _selected(dataset, kept, _disagreement(dataset, copy_of))


class _Near:
    """Texts that were added, and which of them is most similar to another one."""

    def __init__(self, threshold: float, permutations: int, seed: int) -> None:
        self.threshold = threshold
        self.settings = {"num_perm": permutations, "seed": seed}
        self.sketch = optional("datasketch", "near_duplicates", extra="feedback")
        # Candidates are checked exactly: one too many costs a moment, one too few is a copy that stays.
        self.index = self.sketch.MinHashLSH(
            threshold=min(threshold, HIGHEST), num_perm=permutations, weights=(0.02, 0.98)
        )
        self.texts: dict[int, str] = {}

    def find_or_add(self, number: int, text: str) -> int | None:
        twin, sketch = self._find(text)
        if twin is None:
            self._add(number, text, sketch)
        return twin

    def find(self, text: str) -> int | None:
        """The number of the text that is most similar, the first of several, if it is similar enough."""
        return self._find(text)[0]

    def add(self, number: int, text: str) -> None:
        self._add(number, text, self._sketch(text))

    def _find(self, text: str) -> tuple[int | None, Any]:
        sketch = self._sketch(text)
        found = [(-_similarity(text, self.texts[number]), number) for number in self.index.query(sketch)]
        best = min(found, default=(0.0, 0))
        return (best[1] if -best[0] >= self.threshold else None), sketch

    def _add(self, number: int, text: str, sketch: Any) -> None:
        self.index.insert(number, sketch)
        self.texts[number] = text

    def _sketch(self, key: str) -> Any:
        # Of rows whose texts are all similar, the shingles of all texts together are at least as similar.
        texts = enumerate(key.split(SEPARATOR))
        shingles = [f"{place}{SEPARATOR}{shingle}" for place, text in texts for shingle in _shingles(text)]
        sketch = self.sketch.MinHash(**self.settings)
        sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in shingles])
        return sketch


def _similarity(one: str, other: str) -> float:
    """That of the two texts of two keys which differ most; of another number of texts, none."""
    texts, others = one.split(SEPARATOR), other.split(SEPARATOR)
    if len(texts) != len(others):
        return 0.0
    return min(_jaccard(_shingles(text), _shingles(twin)) for text, twin in zip(texts, others, strict=True))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


def _shingles(text: str) -> frozenset[str]:
    return frozenset(text[start : start + SHINGLE] for start in range(max(len(text) - SHINGLE + 1, 1)))


@dataclass(frozen=True)
class Leakage:
    """Take out of these rows what is in held-out rows too, so that a test tests what was not learned.

    Args:
        held_out ([`~datasets.Dataset`]): Rows of a test split; they are not changed.
        threshold (`float`, *optional*): Take out near copies as well, as in [`NearDuplicates`].
        columns (`tuple[str, ...]`, *optional*):
            By which rows are the same. Default: all texts. `("prompt",)` takes out every row about a held-out prompt.
    """

    held_out: Dataset = field(repr=False)
    threshold: float | None = None
    columns: tuple[str, ...] | None = None
    permutations: int = 128
    seed: int = 0
    name: str = "leakage"

    def __post_init__(self) -> None:
        if self.threshold is not None:
            _check_threshold(self.threshold)

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        columns = text_columns(dataset, self.columns)
        require_columns(self.held_out, columns, "Looking for leaks in the held-out rows")
        held_out: dict[str, int] = {}
        for number, key in enumerate(_keys(self.held_out, columns)):
            held_out.setdefault(key, number)
        near = None
        if self.threshold is not None:
            near = _Near(self.threshold, self.permutations, self.seed)
            for key, number in held_out.items():
                near.add(number, key)
        kept, exact, alike, met = [], 0, 0, set()
        for number, key in enumerate(_keys(dataset, columns)):
            twin = held_out.get(key)
            exact += twin is not None
            if twin is None and near is not None:
                twin = near.find(key)
                alike += twin is not None
            if twin is None:
                kept.append(number)
            else:
                met.add(twin)
        notes = {"exact copies": exact, "near copies": alike, "held-out texts met": len(met)}
        return _selected(dataset, kept, notes)


# --- Splits -----------------------------------------------------------------------------------


def split_by_group(
    dataset: Dataset, column: str, splits: Mapping[str, float] = SPLITS
) -> tuple[dict[str, Dataset], Counts]:
    """Divide rows such that all rows of a group are on the same side, by nothing but the group's own value.

    See [`~rlhf_recipes.data.preprocessing.split_of`]. The shares are of groups, not of rows: with few or unequal
    groups the sizes differ from them, and a split may be empty.

    Args:
        dataset ([`~datasets.Dataset`]): The rows.
        column (`str`): What makes a group: a prompt, an author, a number.
        splits (`Mapping[str, float]`, *optional*): Name and share of each split.

    Returns:
        `tuple[dict[str, Dataset], Counts]`: the rows of each split, and how many rows and groups are in it.

    Raises:
        `ValueError`: if there is no such column, or a row has no group.
    """
    require_columns(dataset, [column], "A split by groups")
    members: dict[str, list[int]] = {name: [] for name in splits}
    groups: dict[str, set[str]] = {name: set() for name in splits}
    for number, value in enumerate(dataset.with_format(None)[column]):
        if value is None:
            raise ValueError(
                f"Row {number} has no {column!r}, so it is in no group. Fill it in, or leave the row out."
            )
        group = normalize_text(value if isinstance(value, str) else json.dumps(value))
        name = split_of(group, splits)
        members[name].append(number)
        groups[name].add(group)
    notes: dict[str, int | str] = {
        name: f"{len(rows)} rows of {len(groups[name])} groups" for name, rows in members.items()
    }
    return {name: dataset.select(rows) for name, rows in members.items()}, Counts(len(dataset), len(dataset), 0, notes)


# --- Labels and more rows ---------------------------------------------------------------------


@dataclass(frozen=True)
class BalanceLabels:
    """Leave out rows of the more frequent label until good (0.5 or more) and bad are equally many.

    Which rows stay is drawn by a hash of their texts, so the order of the rows does not matter.

    Args:
        seed (`int`, *optional*, defaults to 0): Of the draw.
    """

    seed: int = 0
    name: str = "balance"

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        require_columns(dataset, ["label"], "Balancing labels")
        sides: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
        keys = _keys(dataset, None)
        for number, (key, label) in enumerate(zip(keys, dataset["label"], strict=True)):
            sides[label >= 0.5].append((row_rng(self.seed, self.name, key).random(), number))
        fewer = min(map(len, sides.values()))
        if not fewer:
            raise ValueError(
                "There is one class only, so labels cannot be balanced. Add rows, or leave balance_labels out."
            )
        kept = sorted(number for rows in sides.values() for _, number in sorted(rows)[:fewer])
        notes = {"good before": len(sides[True]), "bad before": len(sides[False])}
        return _selected(dataset, kept, notes)


@dataclass(frozen=True)
class SwapPairs:
    """Let chosen and rejected change places in a share of the rows, and turn the soft label with them.

    For models that read both texts at once, so that they do not learn that the first is better. `target` becomes
    `1 - target`, `margin` changes its sign, and the votes of both sides change places. Without a soft label a swap
    would only be wrong, and is refused.

    Args:
        share (`float`, *optional*, defaults to 0.5): The chance of each row to be swapped.
        seed (`int`, *optional*, defaults to 0): Of the draw, which depends on the row's texts alone.
    """

    share: float = 0.5
    seed: int = 0
    name: str = "swap"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"The share of pairs to swap is {self.share}; give a number from 0 to 1.")

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        soft = [("chosen", "rejected", "target"), ("chosen", "rejected", "chosen_votes", "rejected_votes")]
        require_columns(dataset, soft, "Swapping pairs with a soft label")
        keys = _keys(dataset, ("chosen", "rejected"))
        swapped = [row_rng(self.seed, self.name, key).random() < self.share for key in keys]
        new = dataset.map(_swap, batched=True, batch_size=BATCH, with_indices=True, fn_kwargs={"swapped": swapped})
        return new, Counts(len(dataset), len(new), sum(swapped))


def _swap(batch: dict[str, list[Any]], numbers: list[int], swapped: Sequence[bool]) -> dict[str, list[Any]]:
    new = {name: list(values) for name, values in batch.items()}
    for place, number in enumerate(numbers):
        if not swapped[number]:
            continue
        for one, other in (("chosen", "rejected"), ("chosen_votes", "rejected_votes")):
            if one in new and other in new:
                new[one][place], new[other][place] = batch[other][place], batch[one][place]
        if "target" in new:
            new["target"][place] = 1 - batch["target"][place]
        if "margin" in new:
            new["margin"][place] = -batch["margin"][place]
    return new


@dataclass(frozen=True)
class WordDropout:
    """Add a copy of each row, with words of its answers missing, behind all rows. The feedback is that of the row.

    A word is what stands between white space; one word at least stays. Copies in which nothing is missing are not
    added, but counted. Whether feedback still holds for the copy is for you to say: a dropped "not" turns it round.

    Args:
        rate (`float`, *optional*, defaults to 0.1): The chance of each word to be left out.
        seed (`int`, *optional*, defaults to 0): Of the draw, which depends on the row's texts alone.
    """

    rate: float = 0.1
    seed: int = 0
    name: str = "word dropout"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"word_dropout is {self.rate}; give a rate above 0 and below 1, or leave it out.")

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        columns = _answers(dataset)
        keys = _keys(dataset, None)

        def dropped(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            new: dict[str, list[Any]] = {}
            for name in columns:
                chances = [row_rng(self.seed, self.name, name, keys[number]) for number in numbers]
                new[name] = [
                    _edited(value, _DropWords(chance, self.rate))
                    for value, chance in zip(batch[name], chances, strict=True)
                ]
            return new

        copies = dataset.map(dropped, batched=True, batch_size=BATCH, with_indices=True, desc=self.name)
        pairs = zip(_rows(dataset, columns), _rows(copies, columns), strict=True)
        other = [number for (number, row), (_, copy) in pairs if row != copy]
        new = concatenate_datasets([dataset, copies.select(other)]) if other else dataset
        return new, Counts(len(dataset), len(new), 0, {"copies like their row, not added": len(dataset) - len(other)})


@dataclass(frozen=True)
class _DropWords:
    chance: random.Random
    rate: float

    def __call__(self, text: str) -> str:
        return "".join(drop_words(re.findall(r"\s*\S+", text), self.chance, self.rate))


# --- Rows and their texts ---------------------------------------------------------------------


def text_columns(dataset: Dataset, columns: Sequence[str] | None = None) -> tuple[str, ...]:
    """The columns asked for, or all of prompt and answers that there are; `ValueError` if there is none."""
    if columns is not None:
        return require_columns(dataset, columns, "Cleaning")
    present = tuple(name for name in TEXT_COLUMNS if name in dataset.column_names)
    if not present:
        require_columns(dataset, [(name,) for name in TEXT_COLUMNS], "Cleaning")
    return present


def _answers(dataset: Dataset) -> tuple[str, ...]:
    """Prompts are what they are: the answers decide. Where there are only prompts, they do."""
    columns = text_columns(dataset)
    return tuple(name for name in columns if name != "prompt") or columns


def _rows(dataset: Dataset, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in dataset.select_columns(list(columns)).iter(batch_size=BATCH):
        for values in zip(*(batch[name] for name in columns), strict=True):
            yield number, dict(zip(columns, values, strict=True))
            number += 1


def _each(value: Any, column: str) -> list[Any]:
    return (value or [None]) if column == "completions" else [value]


def _texts(row: Mapping[str, Any]) -> list[str]:
    return [as_text(value or "") for name in row for value in _each(row[name], name)]


def _keys(dataset: Dataset, columns: Sequence[str] | None) -> list[str]:
    """For each row the form of its texts in which two copies are equal."""
    names = text_columns(dataset, columns)
    keys = []
    for _, row in _rows(dataset, names):
        texts = (_texts({name: value}) if name in TEXT_COLUMNS else [str(value)] for name, value in row.items())
        keys.append(SEPARATOR.join(normalize_text(text) for of_column in texts for text in of_column))
    return keys


def _selected(
    dataset: Dataset, kept: Sequence[int], notes: Mapping[str, int | str] | None = None
) -> tuple[Dataset, Counts]:
    left = dataset if len(kept) == len(dataset) else dataset.select(kept)
    return left, Counts(len(dataset), len(left), 0, notes or {})


def _disagreement(dataset: Dataset, copy_of: Mapping[int, int]) -> dict[str, int]:
    """Of how many copies people said something else than of the row that stays."""
    said = [name for name in SAID if name in dataset.column_names]
    if not said:
        return {}
    rows = dataset.select_columns(said)
    return {"copies with other feedback": sum(rows[copy] != rows[first] for copy, first in copy_of.items())}


def _count_changed(old: Dataset, new: Dataset, columns: Sequence[str]) -> int:
    return sum(one != other for one, other in zip(_rows(old, columns), _rows(new, columns), strict=True))


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"near_duplicates is {threshold}; give a similarity above 0, up to 1, such as 0.8.")
