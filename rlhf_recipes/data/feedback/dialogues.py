r"""Dialogues as others write them, and the prompt inside an answer, put into our columns.

Messages come as `{"role", "content"}` or as ShareGPT's `{"from", "value"}`, alone or in lists; dialogues as one text,
"\n\nHuman: ... \n\nAssistant: ..." (HH-RLHF). Where the prompt stands is told by `LAYOUTS`, one record for each way of
laying out a row: the first that fits a dataset's columns is taken. A further way is a further record.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from rlhf_recipes.data.columns import SYNONYMS, with_columns
from rlhf_recipes.data.feedback.formats import FORMATS, Inside
from rlhf_recipes.data.feedback.record import (
    ANSWERS,
    EMPTY,
    NO_ANSWER,
    NO_BEGINNING,
    NO_DIALOGUE,
    Read,
    Row,
)
from rlhf_recipes.texts import Messages, Text, is_conversational

TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")

# Who speaks, by the names that others give them.
ROLES: Mapping[str, str] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
    "system": "system",
}
TALKS = ("conversations", "conversation", "messages")  # columns that hold a whole dialogue, or all before the answers
EARLY = "the two part before the last answer"
LOOK_AT = 10  # rows that show how the messages are written


@dataclass(frozen=True)
class Layout:
    """One way in which others lay out a row."""

    fits: Callable[[set[str]], bool]  # whether a dataset with these columns is laid out so
    convert: Callable[[Row], Row]  # a row, its messages put right, to the columns of ours that it gives
    uses: tuple[str, ...]  # the columns that are used up
    note: str  # what is said of it


def own_columns(dataset: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """Rows with our columns and our messages, and what is to be said of how they were laid out.

    Args:
        dataset ([`~datasets.Dataset`]): Rows as they were loaded. Where all is as ours, it is returned as it is.

    Raises:
        `ValueError`: if a message is none, or nobody knows who speaks. It names the row.
    """
    present = set(dataset.column_names)
    layout = next((layout for layout in LAYOUTS if layout.fits(present)), None)
    texts = [name for name in ("prompt", *ANSWERS, *TALKS) if name in present]
    foreign = [name for name in texts if _is_foreign(dataset, name)]
    notes = list(_unread(present, layout))
    if layout is None and not foreign:
        return dataset, tuple(notes)
    used = [name for name in (layout.uses if layout else ()) if name in present]
    answers = [name for name in ANSWERS if name in present] if layout else []
    if any(format.of_parts and set(format.columns) <= present for format in FORMATS.values()):
        answers = [name for name in answers if name != "completions"]  # steps of one answer stay texts
    read = sorted({*foreign, *used, *answers})
    made: dict[str, list[Any]] = {}
    for number, row in enumerate(dataset.select_columns(read)):
        try:
            row = {name: _as_messages(value) if name in texts else value for name, value in row.items()}
            new = {name: row[name] for name in foreign} | (layout.convert(row) if layout else {})
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from None
        for name, value in new.items():
            made.setdefault(name, []).append(value)
    kept = {name: values for name, values in made.items() if name not in used or name in ("prompt", *ANSWERS)}
    rest = dataset.remove_columns([name for name in dataset.column_names if name in {*used, *kept}])
    dataset = with_columns(rest, kept)
    order = dict.fromkeys(name for name in ("prompt", *ANSWERS) if name in dataset.column_names)
    order |= dict.fromkeys(dataset.column_names)
    return dataset.select_columns(list(order)), (*([layout.note] if layout else []), *notes)


def _is_foreign(dataset: Dataset, name: str) -> bool:
    """Whether one of the first values of a column is a message alone, or has messages that are not written as ours."""
    for value in dataset[:LOOK_AT][name]:
        for part in value if name == "completions" and isinstance(value, list) else [value]:
            first = part[0] if isinstance(part, list) and part else None
            if isinstance(part, dict):
                return True
            if isinstance(first, dict) and ("from" in first or first.get("role") not in (*ROLES.values(), None)):
                return True
    return False


def _as_messages(value: Any) -> Any:
    """Messages written as ours; a text, a missing value and what is no message stay what they are."""
    if isinstance(value, dict):
        return [_message(value)]
    if isinstance(value, list):
        return [_message(part) if isinstance(part, dict) else _as_messages(part) for part in value]
    return value


def _message(turn: Mapping[str, Any]) -> Row:
    if turn.get("from") is not None:
        who, content = str(turn["from"]), turn.get("value")
        if who.lower() not in ROLES:
            raise ValueError(f"a message is from {who!r}; known are {', '.join(ROLES)}. Rename it in the file.")
        return {"role": ROLES[who.lower()], "content": content or ""}
    if turn.get("role") is None:
        raise ValueError(
            f"a message has {', '.join(turn)}, where role and content, or from and value, must be. Rename them."
        )
    rest = {name: part for name, part in turn.items() if name not in ("from", "value") or part is not None}
    return rest | {"role": ROLES.get(str(turn["role"]).lower(), turn["role"])}


# --- Layouts ----------------------------------------------------------------------------------


def _talk_of(row: Row) -> Messages:
    talk = next(row[name] for name in TALKS if name in row)
    if isinstance(talk, str):
        talk = split_dialogue(talk) or [_user(talk)]
    return _with_system(row, talk or [])


def _with_system(row: Row, messages: Messages) -> Messages:
    system = row.get("system")
    if not system or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _user(text: str) -> Row:
    return {"role": "user", "content": text}


def _answers(row: Row) -> Row:
    """The answers as messages, since their prompt is some."""
    return {
        name: [_answer(value) for value in row[name] or []] if name == "completions" else _answer(row[name])
        for name in ANSWERS
        if name in row
    }


def _answer(value: Any) -> Any:
    return [{"role": "assistant", "content": value}] if isinstance(value, str) else value


def _prompt_and_answers(row: Row) -> Row:
    answers = _answers(row)
    parts = (part for of_column in sides(answers).values() for part in of_column)
    whole = any(isinstance(part, list) and part and part[0].get("role") != "assistant" for part in parts)
    return {"prompt": None if whole else _talk_of(row), **answers}  # whole answers hold what came before them


def _instruction(row: Row) -> Row:
    past = [message for asked, said in row.get("history") or [] for message in (_user(asked), _answer(said)[0])]
    asked = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
    answers = _answers(row if "output" not in row or set(ANSWERS) & set(row) else row | {"completion": row["output"]})
    return {"prompt": _with_system(row, [*past, _user(asked)]), **answers}


def _system_and_prompt(row: Row) -> Row:
    prompt = row["prompt"]
    return {"prompt": _with_system(row, [_user(prompt)] if isinstance(prompt, str) else prompt or []), **_answers(row)}


def _has_answers(present: set[str]) -> bool:
    return any(set(format.columns) <= present for format in FORMATS.values())


def _is_judged(present: set[str]) -> bool:
    """Whether there is what people said of a completion, and no column of answers."""
    said = [set(format.columns) - {"completion"} for format in FORMATS.values() if "completion" in format.columns]
    return not set(ANSWERS) & present and any(columns <= present for columns in said)


def _has_one_talk(present: set[str]) -> bool:
    return sum(name in present for name in TALKS) == 1


LAYOUTS = (
    Layout(
        lambda present: _has_one_talk(present) and _has_answers(present) and "prompt" not in present,
        _prompt_and_answers,
        (*TALKS, "system"),
        "the prompt is the conversation",
    ),
    Layout(
        lambda present: _has_one_talk(present) and _is_judged(present),
        lambda row: {"completion": _talk_of(row)},
        (*TALKS, "system"),
        "the answer is the last message of the conversation",
    ),
    Layout(
        lambda present: (
            "instruction" in present
            and "prompt" not in present
            and (_has_answers(present) or ("output" in present and _is_judged(present)))
        ),
        _instruction,
        ("instruction", "input", "history", "system", "output"),
        "the prompt is the instruction, with its input",
    ),
    Layout(
        lambda present: {"system", "prompt"} <= present and _has_answers(present),
        _system_and_prompt,
        ("system", "prompt"),
        "the prompt begins with the system's text",
    ),
)


def _unread(present: set[str], layout: Layout | None) -> list[str]:
    """What looks like a part of the prompt and is not read, in words."""
    notes = []
    used = layout.uses if layout else ()
    if _has_answers(present) or layout:
        idle = [name for name in (*TALKS, "system") if name in present and name not in used]
        if "prompt" not in present and layout is None:
            idle += [name for name in SYNONYMS["prompt"] if name in present]
        if idle:
            instead = "the prompt is in 'prompt'" if "prompt" in present else "rename it to prompt if it is one"
            notes.append(f"not read: {', '.join(idle)} ({instead})")
    return notes


# --- The prompt inside an answer --------------------------------------------------------------


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
    return [{"role": ROLES[who.lower()], "content": said.strip()} for who, said in turns]


def sides(row: Row) -> dict[str, list[Any]]:
    """The answers of a row by column, each column's in a list; of completions that are no list, none."""
    lists = {name: row[name] if name == "completions" else [row[name]] for name in ANSWERS if name in row}
    return {name: values if isinstance(values, list) else [] for name, values in lists.items()}


def inside_of(row: Row) -> Inside | None:
    """How the answers of a row hold its prompt: `"dialogues"`, `"messages"`, `"repeated"`, or not: `None`."""
    answers = [answer for of_column in sides(row).values() for answer in of_column]
    prompt = row.get("prompt")
    if not answers or not all(answers):
        return None
    if all(isinstance(answer, str) for answer in answers):
        return "dialogues" if prompt is None and all(split_dialogue(answer) for answer in answers) else None
    if not all(is_conversational(answer) for answer in answers):
        return None
    if prompt is None and answers[0][0]["role"] != "assistant":
        return "messages"
    return "repeated" if all(repeats(answer, prompt) for answer in answers) else None


def split_prompt(row: Row, inside: Inside) -> Read:
    """The prompt that the answers of a row share, and the answers without it; or why there is none."""
    by_column = sides(row)
    given = [answer for of_column in by_column.values() for answer in of_column]
    if not given or not all(given):
        return {}, [EMPTY]
    answers = [split_dialogue(answer) if inside == "dialogues" else answer for answer in given]
    if not all(answers):
        return {}, [NO_DIALOGUE]
    shared = _common(answers)
    prompt: Text = answers[0][:shared]
    if inside == "repeated" and not all(repeats(answer, row["prompt"]) for answer in answers):
        shared = 0  # this row does not repeat its prompt, and its answers stay whole
        prompt = row["prompt"] or []
        prompt = [_user(prompt)] if isinstance(prompt, str) else prompt
    elif shared == 0 and len(answers) > 1:
        return {}, [NO_BEGINNING]
    if any(answer[-1]["role"] != "assistant" for answer in answers):
        return {}, [NO_ANSWER]
    rest = iter([answer[shared:] for answer in answers])
    clean: Row = {name: [next(rest) for _ in of_column] for name, of_column in by_column.items()}
    odd = [EARLY] if any(len(answer) > shared + 1 for answer in answers) else []
    return {"prompt": prompt, **{n: v if n == "completions" else v[0] for n, v in clean.items()}}, odd


def _common(answers: Sequence[Messages]) -> int:
    """How many messages dialogues share at the beginning; the last of each is its answer and does not count."""
    shared = 0
    for messages in zip(*(answer[:-1] for answer in answers), strict=False):
        if any(message != messages[0] for message in messages[1:]):
            break
        shared += 1
    return shared


def repeats(answer: Messages, prompt: Text | None) -> bool:
    """Whether an answer begins with its prompt, perhaps after a system message."""
    if not prompt:
        return False
    if isinstance(prompt, str):
        return any(message["role"] == "user" and message.get("content") == prompt for message in answer[:-1])
    return answer[: len(prompt)] == prompt and len(answer) > len(prompt)
