"""Grammar and spelling, as a LanguageTool server judges them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rlhf_recipes.http import Failure, rubbish
from rlhf_recipes.rewards.base import Series
from rlhf_recipes.rewards.contract.checks import check_setting
from rlhf_recipes.rewards.remote import HTTPReward
from rlhf_recipes.texts import Text, as_text
from rlhf_recipes.words import words


@dataclass(frozen=True)
class LanguageTool(HTTPReward):
    """Minus the number of mistakes for each 100 words, as LanguageTool finds them: from 0 down.

    `r = -per * matches / words`, where `matches` are those that a LanguageTool server reports for the completion
    (grammar, spelling, punctuation, style), and `words` those of [`~rlhf_recipes.words.words`] with a letter
    or a digit; each character is one where a script puts no spaces. LanguageTool knows some 30 languages.

    A completion without words (empty, punctuation, emoji alone) gets `None`, and is not sent: this reward cannot stand
    alone. All others are sent as they are, of any length and script, each in a request of its own. A text that the
    server refuses (longer than it is set to take) or has not checked to its end stops the run, and the error says so.

    The server is a program in Java, under the LGPL. Download and unpack LanguageTool-stable.zip from
    languagetool.org/download, and in its folder run

        java -cp languagetool-server.jar org.languagetool.server.HTTPServer --port 8081

    or take a docker image that others make of it, such as `docker run -p 8081:8010 erikvl87/languagetool`. The
    public server at api.languagetool.org is not for programs. What is asked is `POST /v2/check`, as
    languagetool.org/http-api documents it.

    Args:
        url (`str`, *optional*, defaults to `"http://localhost:8081/v2/check"`):
            Where the server checks.
        language (`str`, *optional*, defaults to `"en-US"`):
            A language code. For `"en"` without a country there is no spelling; `"auto"` guesses, and badly so for
            short texts.
        per (`int`, *optional*, defaults to 100):
            Words that the mistakes are counted on; 1 gives mistakes for each word.
        completion_only (`bool`, *optional*, defaults to `True`):
            Whether to send the completion alone. `False` sends a plain prompt before it and counts the mistakes that
            reach into the completion, so that a completion that goes on in mid-sentence is not told to begin with a
            capital. The messages of a conversation stand apart: their completion always goes alone.
        disabled_rules (`Sequence[str]`, *optional*):
            Rules that do not count, by id, such as `"UPPERCASE_SENTENCE_START"`.
        disabled_categories (`Sequence[str]`, *optional*):
            Categories that do not count, such as `"STYLE"` or `"TYPOGRAPHY"`.
        only_categories (`Sequence[str]`, *optional*):
            The categories that count, such as `["GRAMMAR", "TYPOS"]`, instead of all but the disabled.
        picky (`bool`, *optional*, defaults to `False`):
            Whether to apply the rules for formal text too.
        max_concurrent, timeout, retries, max_answer_mb, backoff, token_env, name:
            As for [`~rlhf_recipes.rewards.remote.HTTPReward`]. No token is sent unless `token_env` is given.

    Raises:
        `ValueError`: if a setting is not what it can be.
        [`RewardError`]: if the server cannot be reached, is too slow, refuses (a language that it does not know), or
            answers anything but a full list of matches.

    Example:

    ```python
    LanguageTool(language="en-GB", disabled_categories=["STYLE"])(prompts=[""], completions=["This are a tests."])
    ```
    """

    url: str = "http://localhost:8081/v2/check"
    token_env: str | None = field(default=None, kw_only=True)
    language: str = field(default="en-US", kw_only=True)
    per: int = field(default=100, kw_only=True)
    completion_only: bool = field(default=True, kw_only=True)
    disabled_rules: Sequence[str] = field(default=(), kw_only=True)
    disabled_categories: Sequence[str] = field(default=(), kw_only=True)
    only_categories: Sequence[str] = field(default=(), kw_only=True)
    picky: bool = field(default=False, kw_only=True)
    may_not_apply: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("LanguageTool", "per", self.per, least=1)
        if not self.language:
            raise ValueError("LanguageTool needs a language, such as 'en-US'.")
        for name in ("disabled_rules", "disabled_categories", "only_categories"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} of LanguageTool is {getattr(self, name)!r}; give a list of ids.")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.only_categories and (self.disabled_rules or self.disabled_categories):
            raise ValueError(
                "LanguageTool takes either only_categories or what is disabled (disabled_rules, disabled_categories), "
                "not both: the server refuses that."
            )

    def start(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> Callable[[], Series]:
        before = [
            prompt if isinstance(prompt, str) and isinstance(completion, str) and not self.completion_only else ""
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        texts = [as_text(completion) for completion in completions]
        sizes = [sum(any(map(str.isalnum, word)) for word in words(text)) for text in texts]
        rows = [row for row, size in enumerate(sizes) if size]
        requests = [{"data": self._form(before[row] + texts[row])} for row in rows]
        fetch = self.send(requests, lambda number, answer: _count(answer, _utf16_length(before[rows[number]])))

        def finish() -> Series:
            values: Series = [None] * len(texts)
            for row, mistakes in zip(rows, fetch(), strict=True):
                values[row] = -self.per * mistakes / sizes[row]
            return values

        return finish

    def _form(self, text: str) -> dict[str, str]:
        """What is asked of one text: the parameters of `/v2/check`."""
        form = {"text": text, "language": self.language}
        lists = {
            "disabledRules": self.disabled_rules,
            "disabledCategories": self.disabled_categories,
            "enabledCategories": self.only_categories,
        }
        form |= {name: ",".join(values) for name, values in lists.items() if values}
        if self.only_categories:
            form["enabledOnly"] = "true"
        if self.picky:
            form["level"] = "picky"
        return form


def _count(answer: Any, start: int) -> int:
    """Matches that reach beyond the first `start` units of the text."""
    matches = answer.get("matches") if isinstance(answer, dict) else None
    if not isinstance(matches, list) or not all(_has_place(match) for match in matches):
        raise rubbish("without a list of matches, each with an offset and a length")
    warnings = answer.get("warnings")
    if isinstance(warnings, dict) and warnings.get("incompleteResults"):
        raise Failure(
            "its results for a text are incomplete (incompleteResults)",
            "Give the server more time for a text (maxCheckTimeMillis in the file of its --config).",
        )
    return sum(match["offset"] + match["length"] > start for match in matches)


def _has_place(match: Any) -> bool:
    return isinstance(match, dict) and all(isinstance(match.get(name), int) for name in ("offset", "length"))


def _utf16_length(text: str) -> int:
    # The server is Java, and counts as Java does: an emoji is two.
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
