r"""Human feedback in all the forms in which it comes: what it is, whether it is sound, and how one becomes another.

```
pairs       [prompt,] chosen, rejected [, margin] [, target]       one is better
votes       [prompt,] chosen, rejected, chosen_votes, rejected_votes
ratings     [prompt,] completion, score [, votes]                  continuous, or 1 to K
rankings    [prompt,] completions, ranks                           1 is best, ties share a rank
best_worst  [prompt,] completions, best, worst                     places in the list, from 0
unpaired    [prompt,] completion, label                            true or false, or a chance from 0 to 1
clicks      [prompt,] completion, clicks, views                    what readers did
dwell       [prompt,] completion, dwell_seconds
objectives  [prompt,] completion, scores                           {"helpful": 4, "honest": 2}
steps       [prompt,] completions, labels                          a list of steps, and one label for each
```

Prompts and completions are texts or lists of messages. The prompt may also stand inside both answers of a pair, as in
the raw dialogues of HH-RLHF ("\n\nHuman: ... \n\nAssistant: ..."). [`recognize`] tells the format from the columns,
[`check`] counts what is odd and refuses what is wrong, [`normalize`] gives clean rows, [`convert`] changes formats.

Rows are left out only where they can say nothing; how many, and why, is in the log and in [`Check`].
"""

import json
import logging
import math
import numbers
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from datasets import Dataset

from rlhf_recipes.data.formats import is_blank, is_conversational, require_columns
from rlhf_recipes.data.pairs import TOLERANCE, preferences
from rlhf_recipes.rewards.base import Messages, Text, as_text

logger = logging.getLogger(__name__)

Kind = Literal[
    "pairs", "votes", "ratings", "rankings", "best_worst", "unpaired", "clicks", "dwell", "objectives", "steps"
]
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
# The column in which rows must differ, or there is nothing to learn.
SIGNAL: Mapping[Kind, str] = {"ratings": "score", "unpaired": "label", "dwell": "dwell_seconds", "steps": "labels"}

EMPTY, LONG = "empty text", "very long text"
IDENTICAL = "identical chosen and rejected"
NO_DIALOGUE, NO_ANSWER = "no dialogue of Human and Assistant", "no answer at the end"
NO_BEGINNING, EARLY = "no common beginning", "the two part before the last answer"
MISSING_VOTES, TIE = "missing votes", "tie"
MISSING = "missing value"
NO_VOTES = "a score without votes"
FEW, ALL_TIED, TIES, COPIES = "fewer than two completions", "all ranks tied", "ties", "identical completions"
SAME_PLACE = "best and worst are the same"
UNSEEN = "never shown"
NO_OBJECTIVE, NO_STEP_LABEL = "an objective without a score", "a step without a label"
# The rows with these are left out; all else that is counted is kept.
LEFT_OUT = frozenset(
    {EMPTY, IDENTICAL, NO_DIALOGUE, NO_ANSWER, NO_BEGINNING, MISSING_VOTES, MISSING, FEW, ALL_TIED, SAME_PLACE, UNSEEN}
)

TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
MOST_RATINGS = 20  # whole numbers over a wider range than this are no ordinal scale
MOST_SHOWN = 8  # values in a message
LOOK_AT = 10  # rows that show whether the prompt stands inside the answers


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
            if not _is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"label_map gives {label!r} {value!r}; give a number from 0 (bad) to 1 (good).")
        if self.score_range is not None and not self.score_range[0] < self.score_range[1]:
            raise ValueError(f"score_range is {self.score_range}; give the lowest score and the highest.")
        if self.long_text < 1:
            raise ValueError(f"long_text is {self.long_text}; give 1 or more characters.")


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
            How the prompt stands inside the answers of a pair: `"dialogues"` (of HH-RLHF), `"messages"`, or
            `"repeated"` (and in the column `prompt` too). [`normalize`] splits it off.
    """

    kind: Kind
    columns: tuple[str, ...]
    conversational: bool
    has_prompt: bool
    notes: tuple[str, ...] = ()
    inside: Literal["dialogues", "messages", "repeated"] | None = None

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


# --- Recognizing ------------------------------------------------------------------------------


def recognize(dataset: Dataset, format: Kind | None = None) -> FeedbackFormat:
    """Tell from the columns which feedback this is, and from the values what is special about it.

    Args:
        dataset ([`~datasets.Dataset`]): One row at least.
        format (`str`, *optional*): Which format it is, for columns that fit several.

    Raises:
        `ValueError`: if the columns fit no format (it says which are near), or several (it says how to choose).

    Example:
        >>> str(recognize(Dataset.from_dict({"completion": ["Fine.", "Dull."], "score": [5, 2]})))
        'ratings (completion, score; text, without prompt): 2..5 whole numbers: ordinal'
    """
    if not len(dataset):
        raise ValueError("The dataset has no rows, so there is no feedback in it.")
    dataset = dataset.with_format(None)  # lists, also where the user wants tensors
    kind = _kind_of(dataset, format)
    columns = (*COLUMNS[kind], *(name for name in OPTIONAL.get(kind, ()) if name in dataset.column_names))
    values = _first_text(dataset, next(name for name in columns if name in TEXTS))
    inside = _prompt_inside(dataset) if kind in ("pairs", "votes") else None
    return FeedbackFormat(
        kind,
        columns,
        conversational=values is not None and is_conversational(values),
        has_prompt="prompt" in dataset.column_names,
        notes=tuple(_notes(dataset, kind, inside)),
        inside=inside,
    )


def _kind_of(dataset: Dataset, wanted: Kind | None) -> Kind:
    present = set(dataset.column_names)
    if wanted is not None:
        FeedbackSettings(format=wanted)  # refuses what is no format
        require_columns(dataset, COLUMNS[wanted], f"Feedback of the format {wanted!r}")
        return wanted
    half = present & {"chosen_votes", "rejected_votes"}
    if len(half) == 1:
        raise ValueError(
            f"There is a column {half.pop()!r}, but not the votes of the other side. Add chosen_votes or "
            "rejected_votes, or say format='pairs' to do without."
        )
    fits = [kind for kind, columns in COLUMNS.items() if set(columns) <= present]
    # votes are pairs too: what asks for more columns is the better name
    fits = [kind for kind in fits if not any(set(COLUMNS[kind]) < set(COLUMNS[other]) for other in fits)]
    if len(fits) == 1:
        return fits[0]
    if not fits:
        missing = {kind: len(set(columns) - present) for kind, columns in COLUMNS.items()}
        near = [COLUMNS[kind] for kind in COLUMNS if missing[kind] == min(missing.values())]
        require_columns(dataset, near, "Feedback")  # raises, and says what to rename
    named = " and ".join(f"{kind} ({', '.join(COLUMNS[kind])})" for kind in fits)
    raise ValueError(
        f"The columns {', '.join(dataset.column_names)} fit {len(fits)} formats: {named}. Choose with "
        f"{' or '.join(f'format={kind!r}' for kind in fits)}, or remove the columns that do not count."
    )


def _first_text(dataset: Dataset, column: str) -> Any:
    """The first value that is there; of a list of completions, its first."""
    for value in dataset[column]:
        is_list = column == "completions" and isinstance(value, list)
        value = (value[0] if value else None) if is_list else value
        if value is not None:
            return value
    return None


def _prompt_inside(dataset: Dataset) -> Literal["dialogues", "messages", "repeated"] | None:
    """How one of the first pairs holds its prompt; one of them may be broken."""
    for row in dataset.select(range(min(LOOK_AT, len(dataset)))):
        chosen, rejected = row["chosen"], row["rejected"]
        if not chosen or not rejected:
            continue
        if isinstance(chosen, str) and isinstance(rejected, str) and "prompt" not in row:
            if split_dialogue(chosen) and split_dialogue(rejected):
                return "dialogues"
        elif is_conversational(chosen) and is_conversational(rejected):
            if "prompt" not in row and chosen[0]["role"] != "assistant":
                return "messages"
            if _repeats(chosen, row.get("prompt")) and _repeats(rejected, row.get("prompt")):
                return "repeated"
    return None


def _repeats(answer: Messages, prompt: Text | None) -> bool:
    """Whether an answer begins with its prompt, perhaps after a system message."""
    if not prompt:
        return False
    if isinstance(prompt, str):
        return any(message["role"] == "user" and message.get("content") == prompt for message in answer[:-1])
    return answer[: len(prompt)] == prompt and len(answer) > len(prompt)


def _notes(dataset: Dataset, kind: Kind, inside: str | None) -> Iterable[str]:
    if inside == "dialogues":
        yield "HH-RLHF dialogues, split into prompt and answer when read"
    elif inside is not None:
        yield "the prompt stands inside the answers, split off when read"
    if kind == "ratings":
        yield _range_note(dataset["score"], "scores")
        if "votes" in dataset.column_names:
            yield f"{_count_note(dataset['votes'])} votes a row"
    elif kind == "votes":
        sides = zip(dataset["chosen_votes"], dataset["rejected_votes"], strict=True)
        yield f"{sum(a is not None and a == b for a, b in sides)} of {len(dataset)} rows are ties"
    elif kind == "rankings":
        ties = sum(isinstance(ranks, list) and len(set(ranks)) < len(ranks) for ranks in dataset["ranks"])
        yield f"{_count_note(dataset['completions'])} completions a row"
        yield f"ties in {ties} of {len(dataset)} rows"
    elif kind == "best_worst":
        yield f"{_count_note(dataset['completions'])} completions a row"
    elif kind == "unpaired":
        yield _label_note(dataset["label"])
    elif kind == "dwell":
        yield _range_note(dataset["dwell_seconds"], "seconds")
    elif kind == "objectives":
        rows = [scores for scores in dataset["scores"] if scores]
        names = dict.fromkeys(name for scores in rows if isinstance(scores, dict) for name in scores)
        yield f"objectives {', '.join(names)}" if names else f"{_count_note(rows)} scores a row, in lists"
    elif kind == "steps":
        yield f"{_count_note(dataset['completions'])} steps a row"
        yield _label_note([label for labels in dataset["labels"] for label in labels or ()])


def _range_note(values: Iterable[Any], what: str) -> str:
    known = [value for value in values if _is_number(value)]
    if not known:
        return f"{what} are no numbers"
    low, high = min(known), max(known)
    if all(float(value).is_integer() for value in known):
        ordinal = "ordinal" if high - low <= MOST_RATINGS else "counts"
        return f"{low:g}..{high:g} whole numbers: {ordinal}"
    return f"{low:.4g}..{high:.4g}: continuous"


def _count_note(lists: Iterable[Any]) -> str:
    counts = [len(value) for value in lists if isinstance(value, list)]
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{low}" if low == high else f"{low} to {high}"


def _label_note(labels: Iterable[Any]) -> str:
    known = [label for label in labels if label is not None]
    if any(isinstance(label, str) for label in known):
        return f"labels are texts, {_shown(known)}: label_map must say what they count"
    if not all(_is_number(label) and 0 <= label <= 1 for label in known):
        return f"labels are not all within 0 and 1, {_shown(known)}: label_map must say what they count"
    return "labels are 0 and 1" if set(known) <= {0, 1} else "labels from 0 to 1: soft"


def _shown(values: Iterable[Any]) -> str:
    counts = sorted(Counter(map(repr, values)).items())
    more = f" and {len(counts) - MOST_SHOWN} more" if len(counts) > MOST_SHOWN else ""
    return ", ".join(f"{value} ({count})" for value, count in counts[:MOST_SHOWN]) + more


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


# --- Checking and normalizing -----------------------------------------------------------------


def check(dataset: Dataset, settings: FeedbackSettings = FeedbackSettings()) -> Check:
    """Look at every row: count what is odd, and refuse what is wrong.

    Left out and counted: an empty text, a pair of identical texts, a missing value or votes that are missing or all 0,
    a ranking of fewer than two or with all ranks tied, best and worst in the same place, a text never shown, and
    dialogues without a common beginning or an answer at the end.

    Kept and counted: ties, texts of 50,000 characters or more, the same completion twice in a ranking, dialogues that
    part before the last answer, objectives without a score, steps without a label.

    Args:
        dataset ([`~datasets.Dataset`]): The rows.
        settings ([`FeedbackSettings`], *optional*): How they are read.

    Raises:
        `ValueError`: for NaN and infinity, negative votes, clicks or seconds, more clicks than views, scores out of
            the stated range, ranks below 1, lists of unequal length, places outside the list, labels that are texts or
            outside 0 and 1 without a `label_map`, rows that all say the same (one class), and no row left. The message
            names the row.
    """
    return _read(dataset, settings)[0]


def normalize(dataset: Dataset, settings: FeedbackSettings = FeedbackSettings()) -> tuple[Dataset, Check]:
    """The rows that can be used, in one form: prompt and answers apart, numbers as floats, labels from 0 to 1.

    Args:
        dataset, settings: As in [`check`].

    Returns:
        `tuple[Dataset, Check]`: the rows in their order, with all other columns as they were, and what was found. A
        prompt that stood inside the answers becomes a column `prompt` of messages. `scores` become a mapping of name
        and number.

    Raises:
        `ValueError`: As [`check`].
    """
    found, columns = _read(dataset, settings)
    for why, count in found.left_out.items():
        logger.warning("Left out %d of %d rows of feedback: %s.", count, found.rows, why)
    for what, count in found.noted.items():
        logger.info("%d of %d rows of feedback, kept: %s.", count, found.rows, what)
    old = dataset.with_format(None)
    order = [*old.column_names] if "prompt" in old.column_names or "prompt" not in columns else ["prompt"]
    order += [name for name in old.column_names if name not in order]
    clean = old if len(found.kept) == found.rows else old.select(found.kept)
    clean = clean.remove_columns([name for name in columns if name in old.column_names])
    for name, values in columns.items():
        clean = clean.add_column(name, values) if clean.column_names else Dataset.from_dict({name: values})
    return clean.select_columns(order), found


def _read(dataset: Dataset, settings: FeedbackSettings) -> tuple[Check, dict[str, list[Any]]]:
    """What was found, and the clean values of those columns that change."""
    feedback = recognize(dataset, settings.format)
    reader = READERS[feedback.kind]
    names = [*feedback.columns, *(["prompt"] if feedback.has_prompt else [])]
    rows = dataset.with_format(None).select_columns(names)
    if feedback.kind in ("unpaired", "steps"):
        _check_labels(rows, feedback.kind, settings)
    left_out: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    kept: list[int] = []
    columns: dict[str, list[Any]] = {}
    for number, row in enumerate(rows):
        try:
            clean, odd = _read_row(row, number, feedback, reader, settings)
        except ValueError as error:
            raise ValueError(f"Row {number} of the {feedback.kind}: {error}") from None
        reasons = [what for what in dict.fromkeys(odd) if what in LEFT_OUT]
        left_out.update(reasons)
        if reasons:
            continue
        noted.update(list(dict.fromkeys(odd)))
        kept.append(number)
        for name, value in clean.items():
            columns.setdefault(name, []).append(value)
    found = Check(feedback, len(dataset), kept, dict(left_out), dict(noted))
    _check_whole(found, columns)
    return found, columns


def _read_row(row: Row, number: int, feedback: FeedbackFormat, reader: Any, settings: FeedbackSettings) -> Read:
    clean: Row = {}
    odd: list[str] = []
    if feedback.inside is not None:
        clean, odd = _split_prompt(row, feedback.inside)
        row = row | clean
    for name in TEXTS:
        if name not in row or any(what in LEFT_OUT for what in odd):
            continue
        values = row[name] if name == "completions" else [row[name]]
        if values is not None and not isinstance(values, list):
            raise ValueError(f"completions must be a list of texts, but is {values!r:.60}.")
        if values is None or any(is_blank(value, name, number) for value in values):
            odd.append(EMPTY)
        elif any(len(as_text(value)) >= settings.long_text for value in values):
            odd.append(LONG)
    if any(what in LEFT_OUT for what in odd):
        return {}, odd
    values, more = reader(row, settings)
    return clean | values, odd + more


def _check_whole(found: Check, columns: Mapping[str, list[Any]]) -> None:
    if not found.kept:
        where = ", ".join(f"{why} ({count})" for why, count in found.left_out.items())
        raise ValueError(f"None of the {found.rows} rows of {found.format.kind} can be used: {where}.")
    name = SIGNAL.get(found.format.kind)
    if name is None:
        return
    values = columns[name]
    flat = [label for labels in values for label in labels] if name == "labels" else values
    distinct = {value for value in flat if value is not None}
    if len(distinct) < 2:
        only = f"{distinct.pop():g}" if distinct else "missing"
        raise ValueError(
            f"There is one class only: in all {len(found.kept)} rows the {name} is {only}, so there is nothing to "
            "tell apart. Add rows of the other kind."
        )


def split_dialogue(text: str) -> Messages:
    r"""Split a dialogue as in HH-RLHF, "\n\nHuman: ... \n\nAssistant: ...", into messages. `[]` if it is none.

    Contents are stripped at both ends, since the marks of the format add spaces of their own. A line "Human:" or
    "Assistant:" that a speaker quotes after an empty line cannot be told from a turn.

    Example:
        >>> split_dialogue("\n\nHuman: Hello\n\nAssistant: Hi!")
        [{'role': 'user', 'content': 'Hello'}, {'role': 'assistant', 'content': 'Hi!'}]
    """
    before, *parts = TURN.split(text)
    if before.strip() or len(parts) < 4 or parts[0] != "Human":
        return []
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": ROLES[who], "content": said.strip()} for who, said in turns]


def _common(one: Messages, other: Messages) -> int:
    """How many messages two dialogues share at the beginning; the last of each is its answer and does not count."""
    shared = 0
    for first, second in zip(one[:-1], other[:-1], strict=False):
        if first != second:
            break
        shared += 1
    return shared


def _split_prompt(row: Row, inside: str) -> Read:
    chosen, rejected = row["chosen"] or [], row["rejected"] or []
    if inside == "dialogues":
        chosen, rejected = (split_dialogue(side or "") for side in (row["chosen"], row["rejected"]))
    if not chosen or not rejected:
        return {}, [NO_DIALOGUE if row["chosen"] and row["rejected"] else EMPTY]
    shared = _common(chosen, rejected)
    prompt: Text = chosen[:shared]
    if inside == "repeated" and not (_repeats(chosen, row["prompt"]) and _repeats(rejected, row["prompt"])):
        shared = 0  # this row does not repeat its prompt, and both answers stay whole
        prompt = row["prompt"] or []
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    elif shared == 0:
        return {}, [NO_BEGINNING]
    clean = {"prompt": prompt, "chosen": chosen[shared:], "rejected": rejected[shared:]}
    if any(side[-1]["role"] != "assistant" for side in (chosen, rejected)):
        return {}, [NO_ANSWER]
    odd = [EARLY] if len(clean["chosen"]) > 1 or len(clean["rejected"]) > 1 else []
    return clean, odd


def _number(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, numbers.Real):
        raise ValueError(
            f"{name} is {value!r:.60}, a {type(value).__name__}, and must be a number. Convert the column, for "
            f"instance with `dataset.cast_column({name!r}, Value('float64'))`."
        )
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, and must be a finite number. Leave the row out, or the value empty.")
    return float(value)


def _numbers(values: Any, name: str, length: int) -> list[float | None]:
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list, but is {values!r:.60}.")
    if len(values) != length:
        raise ValueError(f"there are {length} completions and {len(values)} {name}; give one for each.")
    return [_number(value, f"{name}[{place}]") for place, value in enumerate(values)]


def _not_negative(value: float | None, name: str) -> float | None:
    if value is not None and value < 0:
        raise ValueError(f"{name} is {value:g}; it must be 0 or more.")
    return value


def _in_range(value: float | None, name: str, bounds: tuple[float, float] | None) -> float | None:
    if value is not None and bounds is not None and not bounds[0] <= value <= bounds[1]:
        raise ValueError(
            f"{name} is {value:g}, outside the score_range from {bounds[0]:g} to {bounds[1]:g}. Correct the row or "
            "the range."
        )
    return value


def _read_pair(row: Row, settings: FeedbackSettings) -> Read:
    odd = [IDENTICAL] if row["chosen"] == row["rejected"] else []
    clean: Row = {name: _number(row[name], name) for name in OPTIONAL["pairs"] if name in row}
    if "target" in clean and clean["target"] is not None and not 0 <= clean["target"] <= 1:
        raise ValueError(f"target is {clean['target']:g}; it is the chance that chosen is better, from 0 to 1.")
    if clean.get("target") == 0.5:
        odd.append(TIE)
    return clean, odd + ([MISSING] if None in clean.values() else [])


def _read_votes(row: Row, settings: FeedbackSettings) -> Read:
    names = ("chosen_votes", "rejected_votes")
    clean = {name: _not_negative(_number(row[name], name), name) for name in names}
    chosen, rejected = clean.values()
    odd = [IDENTICAL] if row["chosen"] == row["rejected"] else []
    if chosen is None or rejected is None or chosen + rejected == 0:
        odd.append(MISSING_VOTES)
    elif chosen == rejected:
        odd.append(TIE)
    return clean, odd


def _read_rating(row: Row, settings: FeedbackSettings) -> Read:
    score = _in_range(_number(row["score"], "score"), "score", settings.score_range)
    odd = [MISSING] if score is None else []
    if "votes" in row:
        # The list stays as it is: a vote that was not given holds the place of its rater.
        votes = row["votes"] if isinstance(row["votes"], list) else [row["votes"]]
        odd += [] if any(_is_number(vote) for vote in votes) else [NO_VOTES]
    return {"score": score}, odd


def _read_ranking(row: Row, settings: FeedbackSettings) -> Read:
    completions = row["completions"]
    ranks = _numbers(row["ranks"], "ranks", len(completions))
    for place, rank in enumerate(ranks):
        if rank is None or rank < 1:
            given = "missing" if rank is None else f"{rank:g}"
            raise ValueError(f"ranks[{place}] is {given}; ranks are numbers from 1 (best) on.")
    odd = [FEW] if len(ranks) < 2 else [ALL_TIED] if len(set(ranks)) == 1 else []
    if len(set(ranks)) < len(ranks):
        odd.append(TIES)
    if len({json.dumps(completion) for completion in completions}) < len(completions):
        odd.append(COPIES)
    return {"ranks": ranks}, odd


def _read_best_worst(row: Row, settings: FeedbackSettings) -> Read:
    count = len(row["completions"])
    clean: Row = {}
    for name in ("best", "worst"):
        place = _number(row[name], name)
        if place is not None and (not place.is_integer() or not 0 <= place < count):
            raise ValueError(f"{name} is {place:g}; it is a place in the list, from 0 to {count - 1}.")
        clean[name] = None if place is None else int(place)
    missing = None in clean.values()
    odd = [MISSING] if missing else [SAME_PLACE] if clean["best"] == clean["worst"] else []
    return clean, odd + ([FEW] if count < 2 else [])


def _label(value: Any, settings: FeedbackSettings) -> float | None:
    return None if value is None else float(value if settings.label_map is None else settings.label_map[value])


def _read_label(row: Row, settings: FeedbackSettings) -> Read:
    label = _label(row["label"], settings)
    return {"label": label}, [MISSING] if label is None else []


def _read_clicks(row: Row, settings: FeedbackSettings) -> Read:
    clean = {name: _not_negative(_number(row[name], name), name) for name in ("clicks", "views")}
    clicks, views = clean.values()
    if clicks is None or views is None:
        return clean, [MISSING]
    if clicks > views:
        raise ValueError(f"there are {clicks:g} clicks of {views:g} views. Count both of the same people.")
    return clean, [UNSEEN] if views == 0 else []


def _read_dwell(row: Row, settings: FeedbackSettings) -> Read:
    seconds = _not_negative(_number(row["dwell_seconds"], "dwell_seconds"), "dwell_seconds")
    return {"dwell_seconds": seconds}, [MISSING] if seconds is None else []


def _read_objectives(row: Row, settings: FeedbackSettings) -> Read:
    scores = row["scores"]
    if isinstance(scores, list):
        names = row.get("objectives") or settings.objective_names
        if not names:
            raise ValueError("scores is a list without names. Give objective_names, or a column 'objectives'.")
        if len(names) != len(scores):
            raise ValueError(f"there are {len(scores)} scores for {len(names)} objectives ({', '.join(names)}).")
        scores = dict(zip(names, scores, strict=True))
    elif scores is not None and not isinstance(scores, dict):
        raise ValueError(f"scores is {scores!r:.60}; it must be a mapping of names and numbers, or a list.")
    clean = {
        name: _in_range(_number(value, f"scores.{name}"), f"scores.{name}", settings.score_range)
        for name, value in (scores or {}).items()
    }
    known = [value for value in clean.values() if value is not None]
    return {"scores": clean}, [] if len(known) == len(clean) > 0 else [NO_OBJECTIVE] if known else [MISSING]


def _read_steps(row: Row, settings: FeedbackSettings) -> Read:
    if not isinstance(row["labels"], list):
        raise ValueError(f"labels must be a list, but is {row['labels']!r:.60}.")
    steps, labels = len(row["completions"]), [_label(label, settings) for label in row["labels"]]
    if len(labels) != steps:
        raise ValueError(f"there are {steps} steps and {len(labels)} labels; give one for each.")
    known = [label for label in labels if label is not None]
    return {"labels": labels}, [MISSING] if not known else [NO_STEP_LABEL] if len(known) < steps else []


READERS: Mapping[Kind, Any] = {
    "pairs": _read_pair,
    "votes": _read_votes,
    "ratings": _read_rating,
    "rankings": _read_ranking,
    "best_worst": _read_best_worst,
    "unpaired": _read_label,
    "clicks": _read_clicks,
    "dwell": _read_dwell,
    "objectives": _read_objectives,
    "steps": _read_steps,
}


def _check_labels(rows: Dataset, kind: Kind, settings: FeedbackSettings) -> None:
    """All labels at once, so that the error can show every value there is."""
    column = "label" if kind == "unpaired" else "labels"
    lists = ([value] if kind == "unpaired" else value for value in rows[column])
    labels = [label for labels in lists if isinstance(labels, list) for label in labels if label is not None]
    if settings.label_map is not None:
        unknown = [label for label in labels if label not in settings.label_map]
        if unknown:
            known = ", ".join(map(repr, settings.label_map))
            raise ValueError(f"label_map does not say what these labels count: {_shown(unknown)}. It has {known}.")
        return
    if any(not _is_number(label) or not 0 <= label <= 1 for label in labels):
        example = ", ".join(f"{label}: ..." for label in sorted(set(map(repr, labels)))[:3])
        raise ValueError(
            f"Labels must be true or false, or numbers from 0 to 1, but column {column!r} has {_shown(labels)}. Say "
            f"what each counts, from 0 (bad) to 1 (good), with label_map={{{example}}}."
        )


# --- Converting -------------------------------------------------------------------------------


def ratings_to_pairs(dataset: Dataset, passes: int = 1, min_gap: float = 0.5, seed: int = 0) -> Dataset:
    """Pairs of texts that are at least `min_gap` apart, drawn by [`~rlhf_recipes.data.pairs.preferences`].

    Lost: by how much one is better, ratings that are close to all others, and all columns but the texts.

    Args:
        dataset ([`~datasets.Dataset`]): Ratings.
        passes (`int`), min_gap (`float`), seed (`int`): As in [`~rlhf_recipes.data.pairs.draw_pairs`].
    """
    require_columns(dataset, COLUMNS["ratings"], "A conversion of ratings")
    return Dataset.from_dict(preferences(dataset.with_format(None).to_dict(), passes, min_gap, seed))


def rankings_to_pairs(dataset: Dataset, which: Literal["all", "adjacent"] = "all") -> Dataset:
    """A pair for every two completions of different rank.

    K completions without ties give K(K-1)/2 pairs, or K-1 if only neighbours in rank are compared. The pairs of one
    ranking depend on each other: keep them in one split and, if you can, in one batch (Ouyang et al. 2022, section
    3.5, where shuffled pairs overfit). The column `source_row` says where each comes from.

    Lost: that the pairs belong together, the ties, and with `"adjacent"` nothing but repetition. Two copies of one
    text with different ranks make no pair.

    Args:
        dataset ([`~datasets.Dataset`]): Rankings.
        which (`str`, *optional*, defaults to `"all"`): `"all"`, or `"adjacent"`.

    Returns:
        [`~datasets.Dataset`]: in the order of the rows, then of the better rank, then of the worse.
    """
    if which not in ("all", "adjacent"):
        raise ValueError(f"which is {which!r}; give 'all' or 'adjacent'.")
    require_columns(dataset, COLUMNS["rankings"], "A conversion of rankings")

    def compared(row: Row) -> list[tuple[int, int]]:
        ranks = row["ranks"]
        level = {rank: number for number, rank in enumerate(sorted(set(ranks)))}
        order = sorted(range(len(ranks)), key=lambda place: ranks[place])
        pairs = [(one, other) for one in order for other in order if ranks[one] < ranks[other]]
        if which == "all":
            return pairs
        return [(one, other) for one, other in pairs if level[ranks[other]] == level[ranks[one]] + 1]

    return _compared_pairs(dataset, compared, ("completions", "ranks"))


def best_worst_to_pairs(dataset: Dataset, which: Literal["implied", "extremes"] = "implied") -> Dataset:
    """The pairs that follow from a best and a worst completion.

    The best beats all others and all others beat the worst: 2K-3 pairs of K completions, or the one of best and worst.
    As in [`rankings_to_pairs`], the pairs of one row depend on each other, and `source_row` says where each is from.

    Lost: that the pairs belong together; with `"extremes"` the completions between.

    Args:
        dataset ([`~datasets.Dataset`]): Rows with `completions`, `best` and `worst`.
        which (`str`, *optional*, defaults to `"implied"`): `"implied"`, or `"extremes"`.

    Returns:
        [`~datasets.Dataset`]: for each row the best against all others, then the others against the worst.
    """
    if which not in ("implied", "extremes"):
        raise ValueError(f"which is {which!r}; give 'implied' or 'extremes'.")
    require_columns(dataset, COLUMNS["best_worst"], "A conversion of best and worst")

    def compared(row: Row) -> list[tuple[int, int]]:
        best, worst = int(row["best"]), int(row["worst"])
        if which == "extremes":
            return [(best, worst)]
        between = [place for place in range(len(row["completions"])) if place not in (best, worst)]
        over = [(best, place) for place in range(len(row["completions"])) if place != best]
        return over + [(place, worst) for place in between]

    return _compared_pairs(dataset, compared, COLUMNS["best_worst"])


def votes_to_pairs(dataset: Dataset, smoothing: float = 0.0) -> Dataset:
    """Pairs with a soft label: the column `target` is the share of votes for `chosen`.

    `target = (chosen_votes + smoothing) / (chosen_votes + rejected_votes + 2 * smoothing)`; a smoothing of 1 is
    Laplace's rule, by which 1 to 0 is 2/3 and no certainty. Where the majority is for `rejected`, the two change
    places, so that `chosen` is never the worse and the target never below 0.5. A tie is 0.5 and keeps its order.

    Lost: how many voted. Without smoothing 1 to 0 is the same as 30 to 0.

    Args:
        dataset ([`~datasets.Dataset`]): Votes.
        smoothing (`float`, *optional*, defaults to 0): Votes that are added to each side.
    """
    if smoothing < 0:
        raise ValueError(f"smoothing is {smoothing}; give 0 or more votes.")
    require_columns(dataset, COLUMNS["votes"], "A conversion of votes")
    made: dict[str, list[Any]] = {"chosen": [], "rejected": [], "target": []}
    rows = []
    for number, row in enumerate(dataset.with_format(None)):
        sides = [row["chosen_votes"], row["rejected_votes"]]
        if None in sides or sum(sides) == 0:
            continue
        texts = [row["chosen"], row["rejected"]]
        if sides[1] > sides[0]:
            sides, texts = sides[::-1], texts[::-1]
        rows.append(number)
        made["chosen"].append(texts[0])
        made["rejected"].append(texts[1])
        made["target"].append((sides[0] + smoothing) / (sum(sides) + 2 * smoothing))
    _log_left_out(len(dataset) - len(rows), len(dataset), MISSING_VOTES)
    return _made(dataset, rows, COLUMNS["votes"], made)


def ratings_to_unpaired(dataset: Dataset, threshold: float, dead_zone: float = 0.0) -> Dataset:
    """Good is what is rated `threshold + dead_zone` or higher, bad what is rated `threshold - dead_zone` or lower.

    What is rated between is left out and counted. With no dead zone a rating of exactly `threshold` is good.

    Lost: how good and how bad, the single votes, and all that is in the dead zone.

    Args:
        dataset ([`~datasets.Dataset`]): Ratings.
        threshold (`float`): Where good begins.
        dead_zone (`float`, *optional*, defaults to 0): Half the width of what is neither.
    """
    if dead_zone < 0 or not math.isfinite(threshold):
        raise ValueError(f"threshold is {threshold} and dead_zone {dead_zone}; give a number, and one of 0 or more.")
    require_columns(dataset, COLUMNS["ratings"], "A conversion of ratings")
    rows, labels = [], []
    for number, score in enumerate(dataset.with_format(None)["score"]):
        good = score >= threshold + dead_zone - TOLERANCE
        if good or score <= threshold - dead_zone + TOLERANCE:
            rows.append(number)
            labels.append(bool(good))
    _log_left_out(len(dataset) - len(rows), len(dataset), f"within {dead_zone:g} of the threshold {threshold:g}")
    return _made(dataset, rows, ("score", "votes"), {"label": labels})


def rankings_to_ratings(dataset: Dataset) -> Dataset:
    """Each completion by itself, with the share of the others that it beats as its score; a tie counts half.

    The best of K without ties gets 1, the worst 0, and `score = (K - mid-rank) / (K - 1)`.

    Lost: scores of different prompts no longer compare, as the best of a bad list gets 1 too. `source_row` says which
    belong together.

    Args:
        dataset ([`~datasets.Dataset`]): Rankings of two completions or more.
    """
    require_columns(dataset, COLUMNS["rankings"], "A conversion of rankings")
    rows: list[int] = []
    made: dict[str, list[Any]] = {"completion": [], "score": [], "source_row": []}
    for number, row in enumerate(dataset.with_format(None)):
        ranks = row["ranks"]
        for completion, rank in zip(row["completions"], ranks, strict=True):
            beaten = sum(rank < other for other in ranks) + 0.5 * (sum(rank == other for other in ranks) - 1)
            rows.append(number)
            made["completion"].append(completion)
            made["score"].append(beaten / (len(ranks) - 1) if len(ranks) > 1 else 0.5)
            made["source_row"].append(number)
    return _made(dataset, rows, COLUMNS["rankings"], made)


def objectives_to_ratings(dataset: Dataset, weights: Mapping[str, float]) -> Dataset:
    """One score: the weighted sum of the objectives' scores, `sum(weight * score)`.

    Lost: which objective a completion is good at, and every objective without a weight. A row that lacks a score which
    counts is left out and counted.

    Args:
        dataset ([`~datasets.Dataset`]): Rows whose `scores` are mappings, as [`normalize`] makes them.
        weights (`Mapping[str, float]`): What each objective counts; a negative weight is for what should be low.
    """
    require_columns(dataset, COLUMNS["objectives"], "A conversion of objectives")
    plain = dataset.with_format(None)
    names = dict.fromkeys(name for scores in plain["scores"] for name in scores)
    unknown = [name for name in weights if name not in names]
    if unknown or not weights:
        what = f"name {unknown[0]!r}, which is no objective" if unknown else "are empty"
        raise ValueError(f"The weights {what}. There are {', '.join(names)}.")
    rows, totals = [], []
    for number, scores in enumerate(plain["scores"]):
        values = {name: scores.get(name) for name in weights}
        if None not in values.values():
            rows.append(number)
            totals.append(float(sum(weights[name] * value for name, value in values.items())))
    _log_left_out(len(dataset) - len(rows), len(dataset), NO_OBJECTIVE)
    return _made(dataset, rows, ("scores", "objectives"), {"score": totals})


def pairs_to_unpaired(dataset: Dataset) -> Dataset:
    """Each pair as two rows: the chosen text, labelled good, and then the rejected one, labelled bad.

    With a column `target` the labels are it and what it lacks to 1. (TRL's `unpair_preference_dataset` puts all chosen
    texts before all rejected ones of a batch.)

    Lost: which texts were compared. The better of two bad texts is now simply good. A margin is lost too.

    Args:
        dataset ([`~datasets.Dataset`]): Pairs.
    """
    require_columns(dataset, COLUMNS["pairs"], "A conversion of pairs")
    plain = dataset.with_format(None)
    rows = [number for number in range(len(dataset)) for _ in range(2)]
    both = zip(plain["chosen"], plain["rejected"], strict=True)
    completions = [completion for sides in both for completion in sides]
    labels: list[bool] | list[float] = [True, False] * len(dataset)
    if "target" in plain.column_names:
        labels = [label for target in plain["target"] for label in (target, 1 - target)]
    used = (*COLUMNS["votes"], *OPTIONAL["pairs"])
    return _made(dataset, rows, used, {"completion": completions, "label": labels})


def steps_to_ratings(
    dataset: Dataset, how: Literal["mean", "min", "product", "last"] = "mean", separator: str = "\n\n"
) -> Dataset:
    """The steps joined to one completion, and their labels to one score.

    `"min"` and `"product"` ask for every step to be right, as process rewards are usually read (Lightman et al. 2023,
    section 2.6 multiplies), `"last"` for the answer alone. Steps without a label do not count.

    Lost: where it goes wrong.

    Args:
        dataset ([`~datasets.Dataset`]): Steps.
        how (`str`, *optional*, defaults to `"mean"`): `"mean"`, `"min"`, `"product"` or `"last"`.
        separator (`str`, *optional*): What joins the steps. Default: an empty line, as in `rewards/process.py`.
    """
    if how not in ("mean", "min", "product", "last"):
        raise ValueError(f"how is {how!r}; give 'mean', 'min', 'product' or 'last'.")
    require_columns(dataset, COLUMNS["steps"], "A conversion of steps")
    rows: list[int] = []
    made: dict[str, list[Any]] = {"completion": [], "score": []}
    for number, row in enumerate(dataset.with_format(None)):
        labels = [float(label) for label in row["labels"] if label is not None]
        if not labels:
            continue
        scores = {"mean": sum(labels) / len(labels), "min": min(labels), "product": math.prod(labels)}
        rows.append(number)
        made["completion"].append(separator.join(row["completions"]))
        made["score"].append(labels[-1] if how == "last" else scores[how])
    _log_left_out(len(dataset) - len(rows), len(dataset), "no step has a label")
    return _made(dataset, rows, COLUMNS["steps"], made)


def clicks_to_unpaired(
    dataset: Dataset, false_click: float = 0.0, missed_click: float = 0.0, min_views: int = 1
) -> Dataset:
    """The share of readers who like a text, estimated from how many clicked, as a soft label.

    A reader who likes it is taken to click with probability `1 - missed_click`, and one who does not with
    `false_click`. Of the click rate `r = clicks / views` that makes

        label = (r - false_click) / (1 - false_click - missed_click), no less than 0 and no more than 1

    (Rogan and Gladen 1978, the prevalence behind an imperfect test). Without noise it is the click rate. That texts
    shown first are clicked more is not corrected.

    Lost: how often the text was shown, and texts with fewer than `min_views` views, which are counted.

    Args:
        dataset ([`~datasets.Dataset`]): Clicks and views.
        false_click (`float`, *optional*, defaults to 0), missed_click (`float`, *optional*, defaults to 0):
            The noise. Their sum must be below 1, or clicks would say nothing.
        min_views (`int`, *optional*, defaults to 1): Views below which a rate says too little.
    """
    _check_noise(false_click=false_click, missed_click=missed_click)
    require_columns(dataset, COLUMNS["clicks"], "A conversion of clicks")
    rows, labels = [], []
    plain = dataset.with_format(None)
    for number, (clicks, views) in enumerate(zip(plain["clicks"], plain["views"], strict=True)):
        if views is not None and clicks is not None and views >= max(min_views, 1):
            rows.append(number)
            liked = (clicks / views - false_click) / (1 - false_click - missed_click)
            labels.append(float(min(max(liked, 0.0), 1.0)))
    _log_left_out(len(dataset) - len(rows), len(dataset), f"fewer than {max(min_views, 1)} views")
    return _made(dataset, rows, ("clicks", "views"), {"label": labels})


def dwell_to_unpaired(
    dataset: Dataset,
    threshold: float = 30.0,
    prior: float = 0.5,
    false_stay: float = 0.0,
    missed_stay: float = 0.0,
) -> Dataset:
    """The chance that a reader liked a text, from how long he stayed, as a soft label.

    Who stays `threshold` seconds or longer is taken to be content; 30 is the usual mark for web pages (Fox et al.
    2005; Kim et al. 2014 show that it depends on the text, and long texts need more). Signs go wrong: a reader who is
    not content stays all the same with probability `false_stay`, one who is content leaves early with `missed_stay`.
    By Bayes' rule

        label after a long stay  = prior (1 - missed_stay) / (prior (1 - missed_stay) + (1 - prior) false_stay)
        label after a short stay = prior missed_stay / (prior missed_stay + (1 - prior) (1 - false_stay))

    Without noise they are 1 and 0.

    Lost: how long exactly.

    Args:
        dataset ([`~datasets.Dataset`]): Rows with `dwell_seconds`.
        threshold (`float`, *optional*, defaults to 30): Seconds.
        prior (`float`, *optional*, defaults to 0.5): The share of texts that content a reader, above 0 and below 1.
        false_stay (`float`, *optional*, defaults to 0), missed_stay (`float`, *optional*, defaults to 0):
            The noise. Their sum must be below 1.
    """
    _check_noise(false_stay=false_stay, missed_stay=missed_stay)
    if not 0 < prior < 1 or not threshold > 0:
        raise ValueError(f"threshold is {threshold} and prior {prior}; give seconds above 0, and a share in (0, 1).")
    require_columns(dataset, COLUMNS["dwell"], "A conversion of dwell times")
    stayed = prior * (1 - missed_stay), (1 - prior) * false_stay
    left = prior * missed_stay, (1 - prior) * (1 - false_stay)
    rows, labels = [], []
    for number, seconds in enumerate(dataset.with_format(None)["dwell_seconds"]):
        if seconds is not None:
            good, bad = stayed if seconds >= threshold else left
            rows.append(number)
            labels.append(float(good / (good + bad)))
    _log_left_out(len(dataset) - len(rows), len(dataset), MISSING)
    return _made(dataset, rows, ("dwell_seconds",), {"label": labels})


CONVERSIONS: Mapping[tuple[Kind, Kind], Any] = {
    ("ratings", "pairs"): ratings_to_pairs,
    ("rankings", "pairs"): rankings_to_pairs,
    ("best_worst", "pairs"): best_worst_to_pairs,
    ("votes", "pairs"): votes_to_pairs,
    ("ratings", "unpaired"): ratings_to_unpaired,
    ("rankings", "ratings"): rankings_to_ratings,
    ("objectives", "ratings"): objectives_to_ratings,
    ("pairs", "unpaired"): pairs_to_unpaired,
    ("steps", "ratings"): steps_to_ratings,
    ("clicks", "unpaired"): clicks_to_unpaired,
    ("dwell", "unpaired"): dwell_to_unpaired,
}


def convert(
    dataset: Dataset, to: Kind, settings: FeedbackSettings = FeedbackSettings(), **options: Any
) -> tuple[Dataset, Check]:
    """Check and clean the rows, and put them into another format.

    Args:
        dataset ([`~datasets.Dataset`]): Feedback of any format.
        to (`str`): The format wanted. If it is the one there is, the rows are cleaned and that is all.
        settings ([`FeedbackSettings`], *optional*): How the rows are read.
        options: Passed to the conversion, such as `threshold` to [`ratings_to_unpaired`].

    Raises:
        `ValueError`: As [`check`] and the conversion, and if there is none: the message names those there are.
    """
    kind = recognize(dataset, settings.format).kind
    if kind != to and (kind, to) not in CONVERSIONS:
        there = [other for source, other in CONVERSIONS if source == kind]
        onward = {mid: [end for start, end in CONVERSIONS if start == mid] for mid in there}
        two = next((mid for mid, ends in onward.items() if to in ends), None)
        step = f" Convert to {two} first." if two else ""
        raise ValueError(
            f"No conversion from {kind} to {to!r}. From {kind} there is: {', '.join(there) or 'none'}.{step}"
        )
    clean, found = normalize(dataset, settings)
    if kind == to:
        if options:
            raise ValueError(f"The rows are {kind} already, so {', '.join(options)} would change nothing.")
        return clean, found
    return CONVERSIONS[kind, to](clean, **options), found


def _compared_pairs(dataset: Dataset, compared: Any, used: Sequence[str]) -> Dataset:
    rows: list[int] = []
    made: dict[str, list[Any]] = {"chosen": [], "rejected": [], "source_row": []}
    copies = 0
    for number, row in enumerate(dataset.with_format(None)):
        for better, worse in compared(row):
            chosen, rejected = row["completions"][better], row["completions"][worse]
            if chosen == rejected:
                copies += 1
                continue
            rows.append(number)
            made["chosen"].append(chosen)
            made["rejected"].append(rejected)
            made["source_row"].append(number)
    if copies:
        logger.warning("Left out %d pairs of two identical texts.", copies)
    return _made(dataset, rows, used, made)


def _made(dataset: Dataset, rows: Sequence[int], used: Sequence[str], columns: Mapping[str, list[Any]]) -> Dataset:
    """The rows as given, each as often as it is named, with the columns that were used replaced by new ones."""
    if not rows:
        raise ValueError(f"None of {len(dataset)} rows is left after the conversion. Look at its settings.")
    gone = [name for name in dataset.column_names if name in used]
    clash = [name for name in columns if name in dataset.column_names and name not in gone]
    if clash:
        raise ValueError(f"The conversion makes a column {clash[0]!r}, but the dataset has one. Rename it first.")
    made = dataset.with_format(None).select(rows).remove_columns(gone)
    for name, values in columns.items():
        made = made.add_column(name, values) if made.column_names else Dataset.from_dict({name: values})
    return made


def _check_noise(**rates: float) -> None:
    if any(not 0 <= rate < 1 for rate in rates.values()) or sum(rates.values()) >= 1:
        given = " and ".join(f"{name} {rate}" for name, rate in rates.items())
        raise ValueError(f"The noise rates are {given}; give numbers from 0 on whose sum is below 1.")


def _log_left_out(count: int, total: int, why: str) -> None:
    if count:
        logger.warning("Left out %d of %d rows: %s.", count, total, why)


assert set(COLUMNS) == set(READERS) == set(get_args(Kind))
