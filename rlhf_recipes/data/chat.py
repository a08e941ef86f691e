"""Messages into text: what a chat template is given, what it makes of a prompt, and which row it refuses.

All templates are called here. Three things are settled once:

1. A last message of the assistant is an answer that has begun. It is continued, not closed, and what is written behind
   it belongs to the same message.
2. The content of a message is text. Blocks of text are put together; most templates would drop them, or print a list.
3. What a template cannot render is named with its row, and with what to do about it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.texts import is_conversational

KWARGS = "chat_template_kwargs"  # the column, by TRL's name
TOOLS = "tools"  # the column, by TRL's name, with what the model may call
TEXTS = ("prompt", "chosen", "completion", "completions")  # columns, of which one tells whether all are messages
OPENING = "answer_opening"  # the column that tells rewards what the template has written of the answer
TAG_AT_THE_START = re.compile(r"\s*<([A-Za-z_][\w-]*)>")
TAG_AT_THE_END = re.compile(r"<[A-Za-z_][\w-]*>\s*\Z")

# What a template does with messages that it was not made for.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
Messages = list[dict[str, Any]]
Kwargs = Mapping[str, Any]


class ChatError(ValueError):
    """A conversation that cannot be made into text. Says why, and what to do; whoever knows the row adds it."""


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> Messages:
    """Messages whose content is text, without what is `None` because other rows have it.

    Raises:
        `ChatError`: if there are none, or the content of one is missing or no text.
    """
    if not messages:
        raise ChatError("the conversation is empty: give it a message, or leave the row out")
    return [_plain_message(message, number) for number, message in enumerate(messages)]


def _plain_message(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    kept = {name: value for name, value in message.items() if value is not None}
    role, content = kept.get("role"), kept.get("content")
    where = f"message {number} (role {role!r})"
    if not isinstance(role, str):
        raise ChatError(f"{where} has no role: name 'system', 'user' or 'assistant'")
    if isinstance(content, list) and all(isinstance(block, dict) for block in content):
        kinds = {str(block.get("type", "text")) for block in content} - {"text"}
        if kinds:
            raise ChatError(
                f"{where} has content of type {', '.join(sorted(kinds))}, which this model does not read: leave text "
                "alone in it, or leave the row out"
            )
        content = None if any(block.get("text") is None for block in content) else _joined_blocks(content)
    if content is None and not kept.get("tool_calls"):
        raise ChatError(f"{where} has no content (None): fill it in, or leave the row out")
    if content is not None and not isinstance(content, str):
        raise ChatError(f"{where} has a {type(content).__name__} as content: make it text")
    return kept if content is None else {**kept, "content": content}


def _joined_blocks(blocks: Sequence[Mapping[str, Any]]) -> str:
    return "".join(block["text"] for block in blocks)


def whole(prompt: str | Messages, completion: str | Messages) -> Messages:
    """Prompt and completion as one conversation; an answer that the prompt begins is one message with its rest."""
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    after = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
    if before and after and before[-1].get("role") == after[0].get("role") == "assistant":
        begun, rest = plain_messages([before[-1]])[0], plain_messages([after[0]])[0]
        after[0] = {**begun, **rest, "content": begun.get("content", "") + rest.get("content", "")}
        before.pop()
    return [*before, *after]


def answered(prompts: Sequence[Any], texts: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """Prompts and completions as rewards are given them: text, or messages where the prompts are.

    A completion holds the whole answer: what the prompt's last message had begun, and what was written behind it.
    """
    if not is_conversational(prompts[0]):
        return list(prompts), list(texts)
    made = [whole(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    return [messages[:-1] for messages in made], [messages[-1:] for messages in made]


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], kwargs: Kwargs | None = None,
    is_open: bool = False,
) -> str:  # fmt: skip
    """The text that the tokenizer's chat template makes of messages, special tokens included.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Whose template.
        messages (`Sequence[Mapping]`): `role` and `content`, text or blocks of text.
        kwargs (`Mapping`, *optional*): What the template is given besides, such as `{"enable_thinking": False}`.
        is_open (`bool`): Whether it is a prompt: its text ends where the answer begins, or goes on.

    Raises:
        `ChatError`: if there is no template, it refuses the messages or leaves the last one out.
    """
    if tokenizer.chat_template is None:
        raise ChatError(
            f"it is a conversation, but the tokenizer of {tokenizer.name_or_path!r} has no chat template to make text "
            "of it. Take a chat model, set `chat_template` in its tokenizer_config.json, or use plain text"
        )
    plain = plain_messages(messages)
    if is_open and plain[-1]["role"] == "assistant":
        return _continued(tokenizer, plain, kwargs or {})
    text = _applied(tokenizer, plain, {"add_generation_prompt": is_open, **(kwargs or {})})
    last = plain[-1]
    if (
        last["role"] != "assistant" and last.get("content", "").strip() not in text
    ):  # thoughts are taken out of answers
        raise ChatError(
            f"the chat template of {tokenizer.name_or_path!r} leaves out the text of the last message, whose role is "
            f"{last['role']!r}. Name a role that it knows, mostly 'user', or give the tokenizer another chat_template"
        )
    return text


def _continued(tokenizer: PreTrainedTokenizerBase, messages: Messages, kwargs: Kwargs) -> str:
    """The text of a conversation whose last message goes on.

    Some templates change what an assistant has said: they take its thoughts out, or put empty ones before it. Where
    the text would not end with the message, or think twice, the message is put behind the opening of an answer, less
    what this opening has of it already.
    """
    answer = messages[-1].get("content", "")
    try:
        text = _applied(tokenizer, messages, {"continue_final_message": True, **kwargs})
    except ChatError:
        if len(messages) == 1:
            raise
        text = ""
    written, tag = text.rstrip(), TAG_AT_THE_START.match(answer)
    is_there = bool(text) and written.endswith(answer.strip())
    thinks_twice = tag is not None and written.removesuffix(answer.strip()).rstrip().endswith(f"</{tag[1]}>")
    if is_there and not thinks_twice:
        return text
    header = _applied(tokenizer, messages[:-1], {"add_generation_prompt": True, **kwargs})
    for begun in (header, header.rstrip()):
        shared = next((n for n in range(len(answer), 0, -1) if begun.endswith(answer[:n]) and "<" in answer[:n]), 0)
        if shared:
            return begun + answer[shared:]
    return header + answer


def _applied(tokenizer: PreTrainedTokenizerBase, messages: Messages, options: Kwargs) -> str:
    try:
        given = _as_blocks(messages) if _reads_blocks(tokenizer) else messages
        return str(tokenizer.apply_chat_template(given, tokenize=False, **options))
    except TEMPLATE_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
        roles = ", ".join(message["role"] for message in messages)
        raise ChatError(
            f"the chat template of {tokenizer.name_or_path!r} refuses it: {reason}. The roles are {roles or 'none'}. "
            "Change the row (the text of a system turn can stand in front of the first user turn; user and assistant "
            "take turns in most templates), leave it out, or give the tokenizer another chat_template"
        ) from None


def _reads_blocks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template drops content that is text and reads blocks of text, as some of models that see do."""
    if "type" not in str(tokenizer.chat_template):
        return False
    probe = [{"role": "user", "content": "probe"}]

    def shows(messages: Messages) -> bool:
        try:
            return "probe" in str(tokenizer.apply_chat_template(messages, tokenize=False))
        except TEMPLATE_ERRORS:
            return False

    return not shows(probe) and shows(_as_blocks(probe))


def _as_blocks(messages: Messages) -> Messages:
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]} if "content" in message else message
        for message in messages
    ]


def opening_of(messages: Sequence[Mapping[str, Any]], text: str) -> str:
    """What the template itself has written of the answer at the end of a prompt: `"<think>\\n"`; mostly nothing."""
    found = None if messages[-1].get("role") == "assistant" else TAG_AT_THE_END.search(text)
    return found[0] if found else ""


def starts_itself(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text begins with the beginning-of-sequence token, as one does that a template has rendered."""
    return bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))


def once(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that begin with the beginning-of-sequence token once: the text had it, and the tokenizer added one."""
    first = tokenizer.bos_token_id
    return list(ids[1:] if first is not None and list(ids[:2]) == [first, first] else ids)


def open_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of plain prompts: the beginning of a sequence once, where the tokenizer sets it, and no end."""
    if not texts:
        return []
    ids: Any = tokenizer(list(texts))["input_ids"]
    end = tokenizer.eos_token_id
    closes = end is not None and tokenizer("a")["input_ids"][-1:] == [end]
    return [once(row[:-1] if closes else row, tokenizer) for row in ids]


def read_kwargs(value: Any) -> dict[str, Any]:
    """One value of the column `chat_template_kwargs`: a mapping, as JSON or not, without what other rows have.

    Raises:
        `ChatError`: if it is something else.
    """
    try:
        kwargs = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        kwargs = value
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ChatError(f"{KWARGS} is {value!r}: give a mapping such as {{'enable_thinking': False}}")
    return {name: given for name, given in (kwargs or {}).items() if given is not None}


def read_tools(value: Any) -> list[dict[str, Any]]:
    """One value of the column `tools`: descriptions of functions, as JSON or not, without what other rows have.

    Raises:
        `ChatError`: if it is something else.
    """
    try:
        tools = json.loads(value) if isinstance(value, str) and value.strip() else value or []
    except json.JSONDecodeError:
        tools = value
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ChatError(f"{TOOLS} is {value!r}: give a list with a description of each function, or its JSON")
    return [_without_none(tool) for tool in tools]


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_none(inner) for name, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def with_tools(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the template is given for a row besides its messages: its tools, and what its kwargs say, which win."""
    tools = read_tools(row.get(TOOLS))
    return {**({TOOLS: tools} if tools else {}), **read_kwargs(row.get(KWARGS))}


def kwargs_of(rows: Dataset) -> list[dict[str, Any]]:
    """What the template is given for each row: what its column of kwargs says, and of conversations their tools."""
    columns = [name for name in (KWARGS, TOOLS) if name in rows.column_names]
    if TOOLS in columns and not has_messages(rows):
        columns.remove(TOOLS)
    if not columns:
        return [{}] * len(rows)
    return [with_tools(row) for row in rows.with_format(None).select_columns(columns)]


def has_messages(rows: Dataset) -> bool:
    """Whether the prompts or answers of rows are messages, as the first of them tells."""
    values = [rows[0][name] for name in TEXTS if name in rows.column_names] if len(rows) else []
    values += [value[0] for value in values if isinstance(value, list) and value]  # the first of several completions
    return any(bool(value) and is_conversational(value) for value in values)
