"""Rewards for the form of an answer that a program can check: JSON of a schema, a number, think and answer tags."""

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rlhf_recipes.imports import optional
from rlhf_recipes.rewards.rules import Rule
from rlhf_recipes.rewards.verifiable.answer import Reference, VerifiableAnswer
from rlhf_recipes.rewards.verifiable.equality import DEFAULT_TOLERANCE, are_equal, number_of
from rlhf_recipes.rewards.verifiable.numbers import number_reader
from rlhf_recipes.rewards.verifiable.statement import stated
from rlhf_recipes.texts import Text, as_text, sentence


@dataclass(frozen=True)
class JsonSchema(Rule):
    """1 if the completion is JSON that fits a schema, else 0.

    White space may stand around the JSON, and it may stand in one fence of three backquotes, with or without the word
    `json`. `NaN`, `Infinity` and numbers that overflow are not JSON. A completion that is empty, cut off, or nested
    too deeply to be read gets 0. Keys and texts may be of any script.

    The schema is read by jsonschema, by the draft that its `$schema` names (else 2020-12). `format` is not checked, as
    that draft has it. Nothing is fetched: a `$ref` to another document stops the run.

    Args:
        schema (`Mapping`, `str` or `Path`):
            A JSON schema, or a JSON file with one.
        partial (`float`, *optional*, defaults to 0.0):
            What JSON gets that does not fit the schema, from 0 to 1.
        surrounded (`bool`, *optional*, defaults to `False`):
            Whether text may stand before and after the fence. There must be one fence then, or no text.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ValueError`: if the schema is no schema.
    """

    schema: Mapping[str, Any] | str | Path
    partial: float = 0.0
    surrounded: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.partial <= 1:
            raise ValueError(f"JsonSchema has partial {self.partial}; it must be from 0 to 1.")
        if isinstance(self.schema, (str, Path)):
            # Kept as a mapping, so that a pickle needs no file.
            object.__setattr__(self, "schema", _read_schema(Path(self.schema)))
        if not isinstance(self.schema, Mapping):
            raise ValueError(f"A JSON schema is a mapping or a file with one, not {type(self.schema).__name__}.")
        jsonschema = optional("jsonschema", "JsonSchema")
        try:
            _ = self._validator
        except TypeError as error:
            raise ValueError(f"The schema of JsonSchema is not JSON: {sentence(error)}") from error
        except jsonschema.SchemaError as error:
            where = "/".join(map(str, error.absolute_path)) or "its top"
            raise ValueError(f"The schema of JsonSchema is none: at {where}, {error.message}.") from error

    def score(self, text: str) -> float:
        try:
            value = json.loads(self._json_of(text), parse_float=_finite, parse_int=_whole, parse_constant=_finite)
        except (ValueError, RecursionError):
            return 0.0
        try:
            return 1.0 if self._validator.is_valid(value) else self.partial
        except RecursionError:
            return self.partial

    @property
    def _validator(self) -> Any:
        return _validator(json.dumps(self.schema))

    def _json_of(self, text: str) -> str:
        lines = text.strip().splitlines()
        fences = [number for number, line in enumerate(lines) if line.startswith("```")]
        if len(fences) != 2 or not (self.surrounded or fences == [0, len(lines) - 1]):
            return text
        opening, closing = fences
        is_json = lines[opening].strip().lower() in ("```", "```json") and lines[closing].strip() == "```"
        return "\n".join(lines[opening + 1 : closing]) if is_json else text


def _read_schema(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"There is no schema at {str(path)!r} (looked for {path.absolute()}).")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"The schema in {str(path)!r} is not JSON: {sentence(error)}") from error


@functools.cache
def _validator(schema: str) -> Any:
    validators = optional("jsonschema.validators", "JsonSchema", package="jsonschema")
    # The drafts' own schemas alone can be referred to; jsonschema would otherwise go to the network for others.
    registry = optional("jsonschema_specifications", "JsonSchema", package="jsonschema").REGISTRY
    loaded = json.loads(schema)
    kind = validators.validator_for(loaded, default=validators.Draft202012Validator)
    kind.check_schema(loaded)
    return kind(loaded, registry=registry)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is no number of JSON")
    return value


def _whole(number: str) -> int:
    _finite(number)  # the schema's multipleOf and bounds compare it with floats
    return int(number)


@dataclass(frozen=True)
class NumberAnswer(VerifiableAnswer):
    """1 if the number that the completion gives as its answer equals the reference, else 0.

    Numbers may be written `1,234.5`, `.5`, `-3`, `1e3`, `1/2`, `1 3/4`, `50%`, with a currency sign, a unit or a
    degree sign, in the digits of any script, and in LaTeX, `\\frac{1}{2}`, `1.2 \\times 10^{3}`. Words (`two`) and
    expressions (`2^{10}`, `2\\pi`, `5!`, "8 times 9", "half of 9") are not read. Units count where both sides have
    one: 5 feet are not 5 meters.

    What a completion states is read as `verifiable/statement.py` has it: its conclusion. "72 dollars in 3 days" states
    72, and "3 bags of 24" no number. A completion without a number, an empty one among them, one that denies it ("not
    72"), that offers several ("72 or 73"), or that is cut off in its box or tag, is wrong: 0.

    A reference is a number, or a text that is one, with a unit where it has one, or that marks one by a box, by `####`
    or by "the answer is" (so the answers of GSM8K, whose last line is `#### 72`, are taken as they are). A row whose
    reference is anything else, a root, a set, an interval, an equation, a text, gets `None`: its last digits are no
    answer. [`MathAnswer`] and [`ShortAnswer`] take these.

    Args:
        column (`str`, *optional*, defaults to `"answer"`):
            The dataset column with the reference.
        where (`str`, *optional*, defaults to `"anywhere"`):
            Where in the completion the answer is: `"tag"`, in the last `<answer>...</answer>`; `"boxed"`, in the last
            `\\boxed{...}`; `"hashes"`, after the last `####`; `"last"`, the last number of its prose. `"anywhere"`
            takes the first of these that is there, in this order, and before the last number what follows "the answer
            is". Thoughts (`<think>...</think>`), questions and code are passed over.
        relative_tolerance (`float`, *optional*, defaults to 1e-14):
            How far the two may be apart, as a share of the larger one. 0.01 lets `0.33` pass for 1/3; the default
            makes up for rounding in floating point alone, and whole numbers must be equal then. A decimal with 6 or
            more places is right where it is the other one cut off or rounded there, as 0.333333 is 1/3.
        absolute_tolerance (`float`, *optional*, defaults to 0.0):
            How far they may be apart at least.
        decimal_comma (`bool`, *optional*, defaults to `False`):
            Whether texts write `1.234,5`, as most of Europe does, completions and references alike.
        ignore_percent (`bool`, *optional*, defaults to `False`):
            Whether `50%` is 50 and never 0.5. By default it is either, where the other side has no percent sign.

    Raises:
        `RewardError`: if a reference is no text and no finite number; the row is named.
    """

    relative_tolerance: float = DEFAULT_TOLERANCE
    absolute_tolerance: float = 0.0
    decimal_comma: bool = False
    ignore_percent: bool = False

    reads: ClassVar[str] = "numbers"

    def __post_init__(self) -> None:
        super().__post_init__()
        for tolerance in (self.relative_tolerance, self.absolute_tolerance):
            if not 0 <= tolerance < math.inf:
                raise ValueError(f"A tolerance of NumberAnswer is {tolerance}; it must be 0 or more, and finite.")

    def compare(self, completion: str, reference: Reference) -> float | None:
        wanted = number_of(reference, self.decimal_comma)
        if wanted is None:
            return None
        statement = stated(completion, self.where)
        given = None if statement is None else number_reader(self.decimal_comma).answer(statement)
        tolerances = (self.relative_tolerance, self.absolute_tolerance)
        return float(given is not None and are_equal(given, wanted, *tolerances, self.ignore_percent))


@dataclass(frozen=True)
class ThinkAnswerFormat(Rule):
    """1 if the completion is `<think>...</think>` and then `<answer>...</answer>`, else 0.

    Each of the four tags must be there exactly once and in this order, with something other than white space in both
    pairs, and nothing but white space around and between them. With `answer=None` the answer has no tags, as Qwen3
    and DeepSeek-R1 write it: it is the text behind `</think>`. An empty completion gets 0. What is thought and
    answered is not judged, and may be of any script.

    Tags that are special tokens of the tokenizer are not in the text that a reward is given; use tags that are not.

    Args:
        think (`str`, *optional*, defaults to `"think"`), answer (`str`, *optional*, defaults to `"answer"`):
            Names of the two tags.
        opened (`bool`, *optional*):
            Whether the prompt ends with the opening `<think>`, so that the completion must not open it again. Default:
            where it does. A text says so itself; of messages the trainers say it in the column `answer_opening`, if
            the chat template writes the tag.
    """

    think: str = "think"
    answer: str | None = "answer"
    opened: bool | None = None

    def __post_init__(self) -> None:
        for tag in self._tags:
            if not re.fullmatch(r"[^\s<>/]+", tag):
                raise ValueError(f"A tag is named without brackets, slash and spaces, as in 'think', not {tag!r}.")
        if self.think == self.answer:
            raise ValueError(f"ThinkAnswerFormat has two tags named {self.think!r}; they must differ.")

    @property
    def _tags(self) -> list[str]:
        return [self.think] if self.answer is None else [self.think, self.answer]

    def __call__(
        self,
        completions: Sequence[Text],
        prompts: Sequence[Text] | None = None,
        answer_opening: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        texts = [as_text(completion) for completion in completions]
        if self.opened is not None or (prompts is None and answer_opening is None):
            return [self.score(text) for text in texts]
        ends = answer_opening or [prompt if isinstance(prompt, str) else "" for prompt in prompts or ()]
        opened = [end.rstrip().endswith(f"<{self.think}>") for end in ends]
        return [self._score(*row) for row in zip(texts, opened, strict=True)]

    def score(self, text: str) -> float:
        return self._score(text, bool(self.opened))

    def _score(self, text: str, opened: bool) -> float:
        if opened:
            text = f"<{self.think}>{text}"
        tags = [f"<{slash}{name}>" for name in self._tags for slash in ("", "/")]
        if any(text.count(tag) != 1 for tag in tags):
            return 0.0
        pattern = r"\s*{}(.*){}(.*)" if self.answer is None else r"\s*{}(.*){}\s*{}(.*){}\s*"
        match = re.fullmatch(pattern.format(*map(re.escape, tags)), text, re.DOTALL)
        return 1.0 if match is not None and all(part.strip() for part in match.groups()) else 0.0
