"""Rows with conversations, made ready for a run before a model is loaded, and the row named that cannot be.

Row numbers are those of the file, counted from 0, however rows were left out or drawn before.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.data.chat import (
    KWARGS,
    OPENING,
    TOOLS,
    ChatError,
    answered,
    opening_of,
    plain_messages,
    read_kwargs,
    render,
    starts_itself,
    whole,
    with_tools,
)
from rlhf_recipes.data.loading import DataArguments, load_rows
from rlhf_recipes.starting.options import option
from rlhf_recipes.texts import is_conversational

logger = logging.getLogger(__name__)

# The column in which prompts stay messages where TRL's trainers are given their text.
AS_MESSAGES = "prompt_messages"


@dataclass
class TemplateArguments:
    """What chat templates are given besides the messages."""

    help_title = "Chat template"

    chat_template_kwargs: dict | None = option(
        None, "Given to chat templates, as {enable_thinking: false}. A column of that name wins."
    )


@dataclass(frozen=True)
class Origin:
    """Where rows come from, so that one of them can be found again in its file."""

    data: DataArguments
    split: str

    def row_of(self, values: Sequence[Any]) -> int | None:
        """The first row of the file that has the values in its columns, if there is one."""
        rows = load_rows(self.data.dataset_name, self.split, self.data.dataset_config)
        return next((n for n, row in enumerate(rows) if all(value in row.values() for value in values)), None)

    def error(self, number: int, values: Sequence[Any], column: str, error: ChatError) -> ValueError:
        """The error of one row, with its place in the file.

        Args:
            number (`int`): Its place among the rows that are left, where the file has it no longer as it is.
            values (`Sequence`): Of its columns; the first is shown.
        """
        found = self.row_of(values)
        place = f"row {number} of those that are read" if found is None else f"row {found}"
        return ValueError(
            f"{self.data.dataset_name} (split {self.split!r}), {place}, column {column!r}: {error}. The row has "
            f"{_short(values[0])}."
        )


def ready_prompts(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, args: TemplateArguments, data: DataArguments, split: str
) -> Dataset:
    """Prompts whose messages are plain text and which the policy's template can render, with what it is given.

    Rows get the column `chat_template_kwargs`, where the option or the dataset says something or has `tools`, and
    `answer_opening` where the template writes the beginning of the answer (`<think>`): rewards are given both.

    Raises:
        `ValueError`: for a prompt that is no conversation that the template can render, with file and row.
    """
    origin = Origin(data, split)
    rows = _with_kwargs(rows, args, "prompt", origin)
    openings: list[str] = []
    given: list[dict[str, Any]] = []

    def ready(row: dict[str, Any]) -> dict[str, Any]:
        if not is_conversational(row["prompt"]):
            openings.append("")
            return row
        messages = plain_messages(row["prompt"])
        given.append(with_tools(row))
        openings.append(opening_of(messages, render(tokenizer, messages, given[-1], is_open=True)))
        return {**row, "prompt": messages}

    rows = _each(rows, ready, ["prompt"], origin)
    if TOOLS in rows.column_names and len(given) == len(rows):  # as JSON, since each tool has fields of its own
        rows = _with_column(rows, KWARGS, [json.dumps(kwargs) for kwargs in given])
    return rows.add_column(OPENING, openings) if any(openings) else rows


def ready_texts(
    rows: Dataset,
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    args: TemplateArguments,
    data: DataArguments,
    split: str,
) -> Dataset:
    """Texts to learn, perhaps behind a prompt, which the template can render.

    An answer that the prompt begins becomes part of each completion, as TRL's trainers would close it.

    Args:
        columns (`Sequence[str]`): The texts of a row, without `prompt`: text, or messages.

    Raises:
        `ValueError`: as [`ready_prompts`].
    """
    origin = Origin(data, split)
    if "input_ids" in rows.column_names:  # TRL would take them, and not look at the texts
        logger.warning(
            "%s has both texts (%s) and 'input_ids': the texts are learned, and 'input_ids' is left out.",
            *(data.dataset_name, ", ".join(columns)),
        )
        rows = rows.remove_columns("input_ids")
    rows = _with_kwargs(rows, args, columns[0], origin)

    def ready(row: dict[str, Any]) -> dict[str, Any]:
        prompt = row.get("prompt", "")
        if prompt is None:
            raise ChatError("the prompt is None: fill it in, or leave the row out")
        if prompt == []:
            plain_messages(prompt)  # is refused, where TRL would look at its first message
        made = dict(row)
        for column in columns:
            if not is_conversational(row[column]):
                continue
            messages = plain_messages(whole(prompt, row[column]) if prompt else row[column])
            render(tokenizer, messages, with_tools(row))
            begun = bool(prompt) and len(messages) < len(prompt) + len(row[column])
            before = len(prompt) - begun if isinstance(prompt, list) else 1
            if prompt:
                made["prompt"] = messages[:before]
            made[column] = messages[before:] if prompt else messages
        return made

    return _each(rows, ready, [*(["prompt"] if "prompt" in rows.column_names else []), *columns], origin)


def check_items(
    items: Iterable[tuple[int, Any, Any]],
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: Sequence[dict[str, Any]],
    origin: Origin,
) -> None:
    """Raise `ValueError`, as [`ready_prompts`], for a prompt and a completion that the template cannot render.

    Args:
        items (`Iterable`): The row, the prompt and the completion of each text.
        template_kwargs (`Sequence[dict]`): What the template is given for each row.
    """
    for row, prompt, completion in items:
        if not is_conversational(prompt) and not is_conversational(completion):
            continue
        try:
            render(tokenizer, whole(prompt, completion), template_kwargs[row])
        except ChatError as error:
            values, column = ([prompt, completion], "prompt") if prompt else ([completion], "completion")
            raise origin.error(row, values, column, error) from None


def for_trl(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Prompts such that TRL's `GRPOTrainer` and `RLOOTrainer` sample from what is meant.

    These trainers close a last message of the assistant, and do not read the column `chat_template_kwargs`. Where
    there is one of these, prompts become text here, and their messages stay in a column, from which rewards get them
    ([`as_rewards_see`]). Text that begins with the beginning-of-sequence token loses it, where the tokenizer sets it.
    """
    prompts = list(rows["prompt"])
    if is_conversational(prompts[0]):
        if KWARGS not in rows.column_names and all(prompt[-1]["role"] != "assistant" for prompt in prompts):
            return rows
        kwargs = rows[KWARGS] if KWARGS in rows.column_names else [None] * len(prompts)
        rows = rows.add_column(AS_MESSAGES, prompts)
        prompts = [
            render(tokenizer, messages, read_kwargs(own), is_open=True)
            for messages, own in zip(prompts, kwargs, strict=True)
        ]
    sets_it = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    texts = [
        prompt.removeprefix(str(tokenizer.bos_token)) if sets_it and starts_itself(prompt, tokenizer) else prompt
        for prompt in prompts
    ]
    return _with_column(rows, "prompt", texts)


def as_rewards_see(batch: dict[str, Any]) -> dict[str, Any]:
    """What TRL gives a reward, with the messages of prompts that [`for_trl`] made text of."""
    if AS_MESSAGES not in batch:
        return batch
    rest = {name: values for name, values in batch.items() if name != AS_MESSAGES}
    prompts, completions = answered(batch[AS_MESSAGES], batch["completions"])
    return {**rest, "prompts": prompts, "completions": completions}


def _with_kwargs(rows: Dataset, args: TemplateArguments, column: str, origin: Origin) -> Dataset:
    option = args.chat_template_kwargs
    if option is None and KWARGS not in rows.column_names:
        return rows
    if option is not None and not is_conversational(rows[0][column]):
        raise ValueError(
            f"{KWARGS} is given to chat templates, but the column {column!r} of {origin.data.dataset_name} is plain "
            "text, which goes through none. Leave the option out, or give messages."
        )
    own = rows[KWARGS] if KWARGS in rows.column_names else [None] * len(rows)
    merged = []
    for number, value in enumerate(own):
        try:
            merged.append({**(option or {}), **read_kwargs(value)})
        except ChatError as error:
            raise origin.error(number, [value], KWARGS, error) from None
    return _with_column(rows, KWARGS, merged)


def _each(
    rows: Dataset, ready: Callable[[dict[str, Any]], dict[str, Any]], columns: Sequence[str], origin: Origin
) -> Dataset:
    """Apply `ready` to each row; columns that it changed are put in the place of the old ones."""
    made: dict[str, list[Any]] = {column: [] for column in columns}
    for number, row in enumerate(rows):
        try:
            new = ready(row)
        except ChatError as error:
            raise origin.error(number, [row[name] for name in columns], columns[0], error) from None
        for column in columns:
            made[column].append(new[column])
    for column in columns:
        if made[column] != list(rows[column]):
            rows = _with_column(rows, column, made[column])
    return rows


def _with_column(rows: Dataset, name: str, values: list[Any]) -> Dataset:
    """The rows with one column added, or put in the place of that of the name."""
    if rows.column_names == [name]:  # without any column there would be no rows left
        return Dataset.from_dict({name: values})
    rows = rows.remove_columns(name) if name in rows.column_names else rows
    return rows.add_column(name, values)


def _short(value: Any, limit: int = 160) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
