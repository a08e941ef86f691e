"""The formats of human feedback, how they are to be read, and what was found of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from datasets import Dataset

from rlhf_recipes.data.feedback.labels import CLICKS, DWELL, STEPS, UNPAIRED
from rlhf_recipes.data.feedback.lists import BEST_WORST, RANKINGS
from rlhf_recipes.data.feedback.pairs import PAIRS, VOTES
from rlhf_recipes.data.feedback.ratings import OBJECTIVES, RATINGS
from rlhf_recipes.data.feedback.record import ANSWERS, FeedbackSettings, Format
from rlhf_recipes.starting.options import check_choice, option

# All that the library reads. A further format is a further record.
FORMATS: Mapping[str, Format] = {
    format.name: format
    for format in (PAIRS, VOTES, RATINGS, RANKINGS, BEST_WORST, UNPAIRED, CLICKS, DWELL, OBJECTIVES, STEPS)
}
Kind: TypeAlias = str  # the name of one of them
COLUMNS: Mapping[Kind, tuple[str, ...]] = {name: format.columns for name, format in FORMATS.items()}
CONVERSIONS: Mapping[tuple[Kind, Kind], Any] = {
    (name, to): function for name, format in FORMATS.items() for to, function in format.conversions.items()
}

# What people said of the texts, in the columns of all formats.
SAID = tuple(
    dict.fromkeys(
        name for format in FORMATS.values() for name in (*format.columns, *format.optional) if name not in ANSWERS
    )
)
WEIGHT = "weight"  # may stand beside all of them: how much a row counts in training
Weighting = Literal["votes", "labels", "groups"]
Inside = Literal["dialogues", "messages", "repeated"]


@dataclass
class FeedbackArguments:
    """How feedback is read, as options of a command, and into what it is changed.

    The first four are those of [`FeedbackSettings`]. The keys of a map on the command line are texts, which numbers
    and truth values are found under too: `{"1": 1, "-1": 0}`, `{"true": 1, "false": 0}`.

    Raises:
        `ValueError`: as [`FeedbackSettings`], and for options of a conversion that is not asked for.
    """

    help_title = "Feedback"

    feedback_format: str | None = option(None, "Which format the rows have, where their columns fit several.")
    label_map: dict | None = option(None, 'What each label counts, from 0 (bad) to 1 (good): {"good": 1, "bad": 0}.')
    score_range: list[float] | None = option(None, "The lowest score and the highest. Another score is an error.")
    objective_names: list[str] | None = option(
        None, "Names of the objectives, in order, where scores are lists without names."
    )
    weights: str | None = option(
        None, "Let rows count by their votes, labels or groups.", choices=list(get_args(Weighting))
    )
    convert_to: str | None = option(None, "Change the rows into this format.")
    convert_args: dict | None = option(None, 'Options of the conversion, such as {"threshold": 2.5}.')

    def __post_init__(self) -> None:
        if self.convert_to is not None:
            check_choice("convert_to", self.convert_to, FORMATS)
        if self.weights is not None:
            check_choice("weights", self.weights, get_args(Weighting))
        if self.convert_args and self.convert_to is None:
            raise ValueError("convert_args is given without convert_to. Say to which format, or leave both out.")
        if self.feedback_format is not None:
            check_choice("feedback_format", self.feedback_format, FORMATS)
        self.settings()

    def settings(self) -> FeedbackSettings:
        """The part that says how rows are read."""
        bounds = self.score_range
        if bounds is not None and len(bounds) != 2:
            raise ValueError(f"score_range is {bounds}; give two numbers, the lowest score and the highest.")
        limits = None if bounds is None else (bounds[0], bounds[1])
        return FeedbackSettings(self.feedback_format, self.label_map, limits, self.objective_names)


@dataclass(frozen=True)
class FeedbackFormat:
    """What a dataset's feedback is; printed, it is one line.

    Where the prompt stands inside the answers, it may do so in `"dialogues"` (of HH-RLHF), in `"messages"`, or
    `"repeated"` (it is in the column `prompt` too). [`~rlhf_recipes.data.feedback.read.normalize`] splits it off.
    """

    kind: Kind
    columns: tuple[str, ...]  # those that count, without the prompt
    conversational: bool  # whether the answers are messages
    has_prompt: bool  # whether there is a column `prompt`
    notes: tuple[str, ...] = ()  # what the values show, in words
    inside: Inside | None = None

    def __str__(self) -> str:
        what = "messages" if self.conversational else "text"
        prompt = "with prompt" if self.has_prompt else "without prompt"
        notes = f": {'; '.join(self.notes)}" if self.notes else ""
        return f"{self.kind} ({', '.join(self.columns)}; {what}, {prompt}){notes}"


@dataclass(frozen=True)
class Check:
    """What [`check`] found; printed, it is a few lines."""

    format: FeedbackFormat  # of the rows as they came
    rows: int  # how many there are
    kept: list[int] = field(repr=False)  # the numbers of those that can be used
    left_out: dict[str, int]  # why the others cannot, and how many; a row counts once under each reason
    noted: dict[str, int]  # what is odd about rows that are kept

    def __str__(self) -> str:
        lines = [str(self.format), f"{len(self.kept)} of {self.rows} rows can be used."]
        lines += [f"  left out  {count:7d}  {why}" for why, count in self.left_out.items()]
        lines += [f"  noted     {count:7d}  {what}" for what, count in self.noted.items()]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same for a JSON file: format, rows, kept, left_out and noted, all but the format as numbers."""
        counts = {"rows": self.rows, "kept": len(self.kept)}
        return {"format": str(self.format), **counts, "left_out": dict(self.left_out), "noted": dict(self.noted)}


@dataclass(frozen=True)
class Feedback:
    """Feedback as it is handed on, so that nobody has to look again what it is."""

    rows: Dataset  # clean
    kind: Kind  # the format that they have
    check: Check  # what was found of them as they came, in the format that they had then
