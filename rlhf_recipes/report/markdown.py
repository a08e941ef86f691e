"""Text for a model card: nothing that comes from outside is more than text, and nothing private goes with it.

Names, values of a YAML and texts of models lose whatever Markdown, HTML or a formula could begin with. Absolute paths
are shortened to their last part, and secrets are left out.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_recipes.arguments import SECRETS
from rlhf_recipes.imports import optional
from rlhf_recipes.report.words import visible

SAMPLE_LIMIT = 400  # characters of a text in the cell of a table

# ---- clean of what is nobody else's business

_SECRET_KEYS = re.compile(
    r"(env|logging_dir|.*headers|.*cookies?|(proxy[-_])?authorization|.*credentials?"
    r"|.*(access|auth|bearer|hf|hub|secret|private)[-_]?(token|key))",
    re.IGNORECASE,
)
_SECRET_VALUES = re.compile(
    r"\b(hf_[A-Za-z0-9]{8,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{12,}|Bearer\s+\S+)|(?<=://)[^/\s@]+@"
)

# An absolute path of two parts or more, among other words: `/no_think` and `</s>` are none.
_ABSOLUTE = re.compile(
    r"(?<![\w./\\~*<-])(?:file://)?(?:~[\w.-]*/|[A-Za-z]:[/\\]|/(?=[^\s/]+/))"
    r"(?:[^\s'\",;()\[\]{}]*[/\\])?(?=[^\s/\\])"
)
_ONE_PATH = re.compile(r"(file://|~[\w.-]*/|[A-Za-z]:[/\\]|\.\.[/\\]|/[^\s/]+/|\\\\)")


def clean_config(value: Any) -> Any:
    """A YAML without secrets, and with absolute paths shortened to their last part."""
    if isinstance(value, Mapping):
        return {
            str(key): clean_config(element)
            for key, element in value.items()
            if not SECRETS.fullmatch(str(key)) and not _SECRET_KEYS.fullmatch(str(key))
        }
    if isinstance(value, list | tuple):
        return [clean_config(element) for element in value]
    return clean_text(short_name(value)) if isinstance(value, str) else value


def short_name(name: str) -> str:
    """The last part of an absolute path; any other name as it is."""
    if _ONE_PATH.match(name) and "\n" not in name:
        return re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return name


def clean_text(text: str) -> str:
    """A text in which absolute paths may stand among other words, such as a command."""
    return _ABSOLUTE.sub("", _SECRET_VALUES.sub("[left out]", text))


# ---- text on the page, and nothing but text

_BIDI = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F], "\ufffd")

# Whatever Markdown, HTML, formulas or automatic links could begin with. As references they are letters like others.
_MARKUP = re.compile(r"[\\`*_{}\[\]#!|<>&~$@]|:(?=\S)|(?<=\w)\.(?=[^\W\d])|^[-+=]|^\d+[.)]")


def plain_line(value: str) -> str:
    """Text inside a paragraph or a cell: one line of it, with nothing that a renderer would take for markup."""
    plain = " ".join(visible(str(value), None).translate(_BIDI).split())
    return _MARKUP.sub(lambda found: "".join(f"&#{ord(c)};" for c in found.group()), plain)


def cell(value: str) -> str:
    """A longer text for a cell: cut, its line breaks kept."""
    lines = visible(shortened(value.strip()), None).splitlines()
    return "<br>".join(plain_line(line) for line in lines)


def shortened(text: str, limit: int = SAMPLE_LIMIT) -> str:
    """A text of no more than `limit` characters, and how much is missing. What a reader sees as one sign stays whole.

    A sign may be several characters: a letter and its accents, a family of emoji, a flag. Where one does not end at
    the limit, the text is cut before it. Without the package `regex`, which knows where signs end, the text is cut at
    white space.
    """
    end = _last_end(text, limit) if len(text) > limit else len(text)
    if end == len(text):
        return text
    return f"{text[:end].rstrip()} … ({len(text) - end:,} more characters)"


def _last_end(text: str, limit: int) -> int:
    """The last place up to `limit` at which a sign ends."""
    try:
        regex = optional("regex", "shortened")
    except ImportError:
        spaces = [found.start() for found in re.finditer(r"\s", text[: limit + 1])]
        return spaces[-1] if spaces else len(text)
    ends = 0
    for sign in regex.finditer(r"\X", text):
        if sign.end() > limit:
            return ends or sign.end()
        ends = sign.end()
    return ends


def one_line(value: str) -> str:
    return " ".join(value.split())


def as_code(value: str) -> str:
    value = clean_text(value)
    return f"`{value}`" if re.fullmatch(r"[\w./:@+-]+", value) else f"<code>{plain_line(value)}</code>"


def linked(name: str, kind: str = "") -> str:
    """A name as a link where it is an id of the Hub, else as it is called here."""
    found = hub_id(name)
    return f"[{as_code(found)}](https://huggingface.co/{kind}{found})" if found else as_code(short_name(name))


def quoted(value: str) -> str:
    """A Python string for a snippet."""
    return '"' + clean_text(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'


def hub_id(name: str) -> str | None:
    """The name if it can be an id of the Hub: `owner/name` or `name`, and nothing here is called that."""
    looks_like_one = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) and not name.endswith(
        (".json", ".jsonl", ".csv", ".parquet", ".txt")
    )
    local = Path(name).expanduser().exists() or name.split("/")[0] in ("starter", "runs")
    return name if looks_like_one and not local else None


def fenced(text: str, language: str) -> str:
    """A block of code, with a fence that nothing in the text can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def markdown_table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    rule = ["---:" if column in right else "---" for column in range(len(rows[0]))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def rounded(value: Any) -> str:
    number = finite(value)
    if number is None:
        return "–"
    whole = number == 0 or abs(number) >= 1000
    shown = f"{number:,.0f}" if whole else f"{number:#.3g}".rstrip(".")
    return shown.replace("-", "\u2212")


def finite(value: Any) -> float | None:
    """The value if it is a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
