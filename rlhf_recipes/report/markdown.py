"""Text for a model card: nothing that comes from outside is more than text, and nothing private goes with it.

Names, values of a YAML and texts of models lose whatever Markdown, HTML or a formula could begin with. Absolute paths
are shortened to their last part, and secrets are left out.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from rlhf_recipes.arguments import SECRETS
from rlhf_recipes.imports import optional
from rlhf_recipes.report.words import number, visible

SAMPLE_LIMIT = 400  # characters of a text in the cell of a table

# ---- a card


def save_card(path: Path, metadata: ModelCardData, template: str, **content: Any) -> Path:
    """Write a README with metadata for the Hub; an earlier one is replaced.

    Args:
        path (`Path`): The file.
        metadata (`ModelCardData`): What stands above the text.
        template (`str`): Of `templates/`. Names and texts pass through the filters of this module there.
        content: What the template shows.
    """
    text = card_environment().get_template(template).render(**content)
    ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text.strip()}\n").save(path)
    return path


@functools.cache  # so that each template is compiled once
def card_environment() -> Environment:
    """The templates of cards and of code, with the filters that make plain text of what comes from outside."""
    environment = Environment(  # of Markdown: HTML's escapes are not its own
        loader=PackageLoader("rlhf_recipes.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "line": plain_line,
        "code": as_code,
        "linked": linked,
        "quoted": quoted,
        "short": short_name,
        "clean": clean_text,
        "fenced": fenced,
        "table": markdown_table,
        "listed": listed,
        "yaml": _yaml_text,
        "python": lambda value: repr(dict(value) if isinstance(value, Mapping) else value),
        "visible": lambda text: visible(text, None),
    }
    return environment


def _yaml_text(value: str) -> str:
    return value if not set(value) & set(" :#{}[],'\"&*!|>%@`") else '"' + value.replace('"', '\\"') + '"'


def settings_text(config: Mapping[str, Any]) -> str:
    """A configuration as YAML, cleaned; empty where there is none."""
    if not config:
        return ""
    return visible(yaml.safe_dump(clean_config(config), sort_keys=False, allow_unicode=True, width=100), None)


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


def as_sentence(text: str) -> str:
    """A sentence of ours, in which code stands in backticks and everything else is plain."""
    parts = text.split("`")
    return "".join(f"`{part}`" if place % 2 else _spaced_line(part) for place, part in enumerate(parts))


def _spaced_line(text: str) -> str:
    """[`plain_line`] that keeps the white space at both ends."""
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{before}{plain_line(text)}{after}" if text.strip() else text


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
    found = number(value)
    if found is None:
        return "–"
    whole = found == 0 or abs(found) >= 1000
    shown = f"{found:,.0f}" if whole else f"{found:#.3g}".rstrip(".")
    return shown.replace("-", "\u2212")
