"""A prompt or completion, a text or messages: what it is, as one text, and short enough to be shown."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rich.text import Text as Cell

KEPT_OF_FORMAT = "\u200c\u200d"  # joiners that some scripts and emoji are written with


def is_conversational(value: Any) -> bool:
    """Whether one value of a column is a list of messages and not text.

    TRL's function of this name looks at one column of a whole row, of its own choosing.

    Example:
        >>> is_conversational([{"role": "user", "content": "Hello"}]), is_conversational("Hello")
        (True, False)
    """
    return isinstance(value, list) and all(isinstance(message, dict) and "role" in message for message in value)


def readable_bytes(size: int) -> str:
    """A number of bytes in words: `"2.3 kB"`, `"538 MB"`, in powers of 1000."""
    if size < 1000:
        return f"{size} bytes" if size else "0"
    number, units = size / 1000, ["kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        del units[0]
    text = f"{number:.0f}" if number >= 9.95 else f"{number:.1f}".removesuffix(".0")
    return f"{text} {units[0]}"


def readable(text: Any) -> str:
    """A prompt or completion as text; of messages one paragraph for each, after its role where it has one."""
    if isinstance(text, str):
        return text
    messages = [message if isinstance(message, dict) else {"content": message} for message in text]
    return "\n".join(f"{message.get('role', 'message')}: {_content(message)}" for message in messages)


def shorten(text: str, most: int) -> str:
    """Leave out the middle of a longer text, and say how much: the end of a prompt and of a completion tells most."""
    if len(text) <= most:
        return text
    head = most // 2
    tail = most - head
    return f"{text[:head]} [... {len(text) - most} characters ...] {text[-tail:]}"


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):  # parts of several kinds: {"type": "text", "text": ...}, {"type": "image", ...}
        return " ".join(part.get("text") or f"[{part.get('type', 'part')}]" for part in content)
    return str(content or "")


Messages: TypeAlias = list[dict[str, Any]]
Text: TypeAlias = str | Messages


def as_text(value: Text) -> str:
    """Plain text of a prompt or a completion: of messages, the text of each, one below the other."""
    if isinstance(value, str):
        return value
    texts = []
    for message in value:
        content = message.get("content") or ""
        blocks = [content] if isinstance(content, str) else [block.get("text") or "" for block in content]
        texts.append("".join(blocks))
    return "\n".join(texts)


def prompt_and_completion(prompt: Text, completion: Text) -> tuple[str, str]:
    """The two parts of the one text that prompt and completion make where no chat template makes it.

    A completion goes on in the middle of a plain prompt; the messages of a conversation, where there are some, stand
    apart.
    """
    begun = prompt if isinstance(prompt, str) else f"{as_text(prompt)}\n" if prompt else ""
    return begun, as_text(completion)


def one_text(prompt: Text, completion: Text) -> str:
    """That text; see [`prompt_and_completion`]."""
    return "".join(prompt_and_completion(prompt, completion))


def lines_of(given: Sequence[str] | str | Path) -> list[str]:
    """Texts that are given as a list, or in a file with one on each line, of which blank ones are left out."""
    if not isinstance(given, str | Path):
        return list(given)
    path = Path(given)
    if not path.is_file():
        raise FileNotFoundError(f"There is no text file at {str(path)!r} (looked for {path.absolute()}).")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def cell_text(text: str, plain: bool) -> Cell:
    """A cell in which rich looks for no markup and a terminal finds no control sequence; `plain` is ASCII alone."""
    return Cell("".join(_shown(character, plain) for character in text))


def _shown(character: str, plain: bool) -> str:
    if character == "\n" and not plain:
        return "↵"
    if plain and not character.isascii():
        return character.encode("unicode_escape").decode()
    # Control, format, surrogate and separator characters: they would move the cursor, colour the screen, turn the
    # direction of writing round, or not be written at all.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in KEPT_OF_FORMAT:
        return character.encode("unicode_escape").decode()
    return character


def short(value: Any, limit: int = 80) -> str:
    """How a value is shown in a message."""
    try:
        text = repr(value[: limit + 1] if isinstance(value, str) else value)
    except ValueError:  # Python does not write out whole numbers of many thousand digits
        return f"a {type(value).__name__} too long to be written out"
    return text if len(text) <= limit else f"{text[: limit - 4]}...{text[-1]}"


def sentence(words: object) -> str:
    """A text, or what an error says, with one full stop at its end, unless it ends as a sentence already."""
    text = str(words).rstrip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
