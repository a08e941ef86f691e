"""The formats of human feedback: their columns, how they are to be read, and what was found of them."""

import math
import numbers
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

Kind = Literal[
    "pairs", "votes", "ratings", "rankings", "best_worst", "unpaired", "clicks", "dwell", "objectives", "steps"
]
Inside = Literal["dialogues", "messages", "repeated"]
Row: TypeAlias = dict[str, Any]
Read: TypeAlias = tuple[Row, list[str]]  # the clean values of a row, and what is odd about it

# What each format must have, and what it may have.
COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "pairs": ("chosen", "rejected"),
    "votes": ("chosen", "rejected", "chosen_votes", "rejected_votes"),
    "ratings": ("completion", "score"),
    "rankings": ("completions", "ranks"),
    "best_worst": ("completions", "best", "worst"),
    "unpaired": ("completion", "label"),
    "clicks": ("completion", "clicks", "views"),
    "dwell": ("completion", "dwell_seconds"),
    "objectives": ("completion", "scores"),
    "steps": ("completions", "labels"),
}
OPTIONAL: Mapping[Kind, tuple[str, ...]] = {
    "pairs": ("margin", "target"),
    "ratings": ("votes",),
    "objectives": ("objectives",),
}
TEXTS = ("completion", "completions", "chosen", "rejected")
Weighting = Literal["votes", "labels", "groups"]
WEIGHT = "weight"  # may stand beside all of them: how much a row counts in training

# What must be lists, which a CSV can only hold as JSON.
LISTS: Mapping[Kind, tuple[str, ...]] = {
    "ratings": ("votes",),
    "rankings": ("completions", "ranks"),
    "best_worst": ("completions",),
    "objectives": ("scores", "objectives"),
    "steps": ("completions", "labels"),
}

# The column in which rows must differ, or there is nothing to learn.
SIGNAL: Mapping[Kind, str] = {"ratings": "score", "unpaired": "label", "dwell": "dwell_seconds", "steps": "labels"}
EMPTY, LONG = "empty text", "very long text"
IDENTICAL = "identical chosen and rejected"
NO_DIALOGUE, NO_ANSWER = "no dialogue of Human and Assistant", "no answer at the end"
NO_BEGINNING, EARLY = "no common beginning", "the two part before the last answer"
MISSING_VOTES, TIE = "missing votes", "tie"
MISSING = "missing value"
NO_VOTES = "a score without votes"
NO_PROMPT = "an empty prompt"
LOOKS_LIKE_MESSAGES = "a text that looks like messages in JSON"
FEW, ALL_TIED, TIES, COPIES = "fewer than two completions", "all ranks tied", "ties", "identical completions"
SAME_PLACE = "best and worst are the same"
UNSEEN = "never shown"
NO_OBJECTIVE, NO_STEP_LABEL = "an objective without a score", "a step without a label"

# The rows with these are left out; all else that is counted is kept.
LEFT_OUT = frozenset(
    {EMPTY, IDENTICAL, NO_DIALOGUE, NO_ANSWER, NO_BEGINNING, MISSING_VOTES, MISSING, FEW, ALL_TIED, SAME_PLACE, UNSEEN}
)
MOST_SHOWN = 8  # values in a message


@dataclass(frozen=True)
class FeedbackSettings:
    """How feedback is read, where the columns alone do not say it.

    Args:
        format (`str`, *optional*):
            Which format it is, for columns that fit several.
        label_map (`Mapping`, *optional*):
            What each label counts, from 0 (bad) to 1 (good): `{"good": 1, "bad": 0}`. Labels that are texts, or
            numbers outside 0 and 1, are read through it and through nothing else.
        score_range (`tuple[float, float]`, *optional*):
            The scale of ratings, and of the scores of objectives. A score outside of it is an error.
        objective_names (`Sequence[str]`, *optional*):
            The names, in order, where `scores` are lists and no column `objectives` names them.
        long_text (`int`, *optional*, defaults to 50000):
            From how many characters on a text is counted as very long. It is kept.

    Raises:
        `ValueError`: if the format is unknown, a label counts less than 0 or more than 1, or the range is none.
    """

    format: Kind | None = None
    label_map: Mapping[Any, float] | None = None
    score_range: tuple[float, float] | None = None
    objective_names: Sequence[str] | None = None
    long_text: int = 50_000

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in COLUMNS:
            raise ValueError(f"format is {self.format!r}; give one of {', '.join(COLUMNS)}.")
        for label, value in (self.label_map or {}).items():
            if not is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"label_map gives {label!r} {value!r}; give a number from 0 (bad) to 1 (good).")
        if self.score_range is not None and not self.score_range[0] < self.score_range[1]:
            raise ValueError(f"score_range is {self.score_range}; give the lowest score and the highest.")
        if self.long_text < 1:
            raise ValueError(f"long_text is {self.long_text}; give 1 or more characters.")


@dataclass
class FeedbackArguments:
    """How feedback is read, as options of a command, and into what it is changed.

    Args:
        feedback_format (`str`, *optional*), label_map (`dict`, *optional*), score_range (`list[float]`, *optional*),
        objective_names (`list[str]`, *optional*):
            As in [`FeedbackSettings`]. The keys of a map on the command line are texts, which numbers and truth
            values are found under too: `{"1": 1, "-1": 0}`, `{"true": 1, "false": 0}`.
        weights (`str`, *optional*):
            Add a column `weight`: `"votes"`, `"labels"` or `"groups"`, see
            `rlhf_recipes.data.feedback.weights.add_weights`.
        convert_to (`str`, *optional*):
            Change the rows into this format.
        convert_args (`dict`, *optional*):
            Options of that conversion, such as `{"threshold": 2.5}`.

    Raises:
        `ValueError`: as [`FeedbackSettings`], and for options of a conversion that is not asked for.
    """

    help_title = "Feedback"

    feedback_format: str | None = field(
        default=None, metadata={"help": "Which format the rows have, where their columns fit several."}
    )
    label_map: dict | None = field(
        default=None, metadata={"help": 'What each label counts, from 0 (bad) to 1 (good): {"good": 1, "bad": 0}.'}
    )
    score_range: list[float] | None = field(
        default=None, metadata={"help": "The lowest score and the highest. Another score is an error."}
    )
    objective_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the objectives, in order, where scores are lists without names."}
    )
    weights: str | None = field(
        default=None,
        metadata={"help": "Let rows count by their votes, labels or groups.", "choices": list(get_args(Weighting))},
    )
    convert_to: str | None = field(default=None, metadata={"help": "Change the rows into this format."})
    convert_args: dict | None = field(
        default=None, metadata={"help": 'Options of the conversion, such as {"threshold": 2.5}.'}
    )

    def __post_init__(self) -> None:
        if self.convert_to is not None and self.convert_to not in COLUMNS:
            raise ValueError(f"convert_to is {self.convert_to!r}; give one of {', '.join(COLUMNS)}.")
        if self.weights is not None and self.weights not in get_args(Weighting):
            raise ValueError(f"weights is {self.weights!r}; give one of {', '.join(get_args(Weighting))}.")
        if self.convert_args and self.convert_to is None:
            raise ValueError("convert_args is given without convert_to. Say to which format, or leave both out.")
        self.settings()

    def settings(self) -> FeedbackSettings:
        """The part that says how rows are read."""
        bounds = self.score_range
        if bounds is not None and len(bounds) != 2:
            raise ValueError(f"score_range is {bounds}; give two numbers, the lowest score and the highest.")
        kind: Any = self.feedback_format
        limits = None if bounds is None else (bounds[0], bounds[1])
        return FeedbackSettings(kind, self.label_map, limits, self.objective_names)

    @property
    def wanted(self) -> Kind | None:
        """The format to change to, if any."""
        kind: Any = self.convert_to
        return kind


@dataclass(frozen=True)
class FeedbackFormat:
    """What a dataset's feedback is; printed, it is one line.

    Args:
        kind (`str`): The format, one of `COLUMNS`.
        columns (`tuple[str, ...]`): The columns that count, without the prompt.
        conversational (`bool`): Whether the answers are messages.
        has_prompt (`bool`): Whether there is a column `prompt`.
        notes (`tuple[str, ...]`): What the values show, in words.
        inside (`str`, *optional*):
            How the prompt stands inside the answers: `"dialogues"` (of HH-RLHF), `"messages"`, or `"repeated"` (and
            in the column `prompt` too). [`normalize`] splits it off.
    """

    kind: Kind
    columns: tuple[str, ...]
    conversational: bool
    has_prompt: bool
    notes: tuple[str, ...] = ()
    inside: Inside | None = None

    def __str__(self) -> str:
        what = "messages" if self.conversational else "text"
        prompt = "with prompt" if self.has_prompt else "without prompt"
        return f"{self.kind} ({', '.join(self.columns)}; {what}, {prompt})" + "".join(
            f"{': ' if place == 0 else '; '}{note}" for place, note in enumerate(self.notes)
        )


@dataclass(frozen=True)
class Check:
    """What [`check`] found; printed, it is a few lines.

    Args:
        format ([`FeedbackFormat`]): Of the rows as they came.
        rows (`int`): How many there are.
        kept (`list[int]`): The numbers of those that can be used.
        left_out (`dict[str, int]`): Why the others cannot, and how many; a row counts once under each reason.
        noted (`dict[str, int]`): What is odd about rows that are kept.
    """

    format: FeedbackFormat
    rows: int
    kept: list[int] = field(repr=False)
    left_out: dict[str, int]
    noted: dict[str, int]

    def __str__(self) -> str:
        lines = [str(self.format), f"{len(self.kept)} of {self.rows} rows can be used."]
        lines += [f"  left out  {count:7d}  {why}" for why, count in self.left_out.items()]
        lines += [f"  noted     {count:7d}  {what}" for what, count in self.noted.items()]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same for a JSON file: format, rows, kept, left_out and noted, all but the format as numbers."""
        counts = {"rows": self.rows, "kept": len(self.kept)}
        return {"format": str(self.format), **counts, "left_out": dict(self.left_out), "noted": dict(self.noted)}


def shown(values: Iterable[Any]) -> str:
    counts = sorted(Counter(map(repr, values)).items())
    more = f" and {len(counts) - MOST_SHOWN} more" if len(counts) > MOST_SHOWN else ""
    return ", ".join(f"{value} ({count})" for value, count in counts[:MOST_SHOWN]) + more


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


assert set(COLUMNS) == set(get_args(Kind))
