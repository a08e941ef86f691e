"""Rewards from a server: rows go out as JSON over HTTP, numbers come back.

The protocol is one request, so that a wrapper around any model or service can answer it. `recipes/serve_reward.py`
serves any reward of this project that way:

    POST {url}  {"prompts": [...], "completions": [...], "completion_ids": [[...], ...], "columns": {"name": [...]}}
                -> {"rewards": [0.5, null, ...]}     one finite number for each row, or null: does not apply

A server that cannot be used ends the run with a [`RewardError`] that says why. No failure becomes a number: a 0 for
what nobody has judged would be learned from like any other.
"""

import functools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rlhf_recipes.errors import RewardError
from rlhf_recipes.http import MEGABYTE, Client, Failure, excerpt, rubbish
from rlhf_recipes.rewards.base import Series
from rlhf_recipes.rewards.contract.checks import check_positive, check_setting
from rlhf_recipes.rewards.contract.concurrent import run_in_background, wait_for
from rlhf_recipes.statistics import is_finite
from rlhf_recipes.texts import Text, sentence

logger = logging.getLogger(__name__)
TOKEN_ENV = "REWARD_API_TOKEN"
OF_THE_TRAINER = frozenset({"trainer_state", "log_extra", "log_metric", "prompt_ids", "ref_logprobs"})
ADVICE: dict[int | None, str] = {
    400: "Mend the rows or the settings.",
    404: "Check the path of the url: /score of recipes/serve_reward.py, /v2/check of LanguageTool.",
    405: "Check the path of the url: /score of recipes/serve_reward.py, /v2/check of LanguageTool.",
    413: "Send less in one request (batch_size of RemoteReward), or let the server take more.",
    422: "Mend the rows, the columns or the server's rewards.",
}


@dataclass(frozen=True)
class HTTPReward:
    """What the rewards of this project that ask a server have in common; a subclass defines `start`.

    Requests run side by side on the event loop that all rewards of the process share, and are tried again as
    [`~rlhf_recipes.http.Client`] has it. An interrupted wait (Ctrl-C) cancels what is under way. An address of this
    machine itself (`localhost`, `127.0.0.1`) is asked directly; others through the proxy that the environment names
    for them, if it does.

    Args:
        url (`str`):
            Where to ask. It must not hold a user or password: settings end up in logs and files.
        max_concurrent (`int`, *optional*, defaults to 8):
            Requests under way at once.
        timeout (`float`, *optional*, defaults to 60):
            Seconds until an answer must be there, from connecting to its last byte, in each attempt. A server that
            works on one request at a time lets the last of `max_concurrent` wait for all others.
        retries (`int`, *optional*, defaults to 4):
            Attempts after the first.
        max_answer_mb (`float`, *optional*, defaults to 16):
            The largest answer that is read, in units of 2^20 bytes.
        backoff (`float`, *optional*, defaults to 0.5):
            Seconds before the second attempt, at most; then twice as long each time, up to 60.
        token_env (`str`, *optional*, defaults to `"REWARD_API_TOKEN"`):
            The environment variable that holds a bearer token. It is read at each call and kept nowhere; where it is
            not set, none is sent. `None` sends none.
        name (`str`, *optional*):
            What logs show. Default: the name of the class.

    Raises:
        `ValueError`: if a setting is not what it can be.
    """

    url: str
    max_concurrent: int = field(default=8, kw_only=True)
    timeout: float = field(default=60.0, kw_only=True)
    retries: int = field(default=4, kw_only=True)
    max_answer_mb: float = field(default=16.0, kw_only=True)
    backoff: float = field(default=0.5, kw_only=True)
    token_env: str | None = field(default=TOKEN_ENV, kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        kind = type(self).__qualname__
        _check_url(self.url, kind)
        for name, least in (("max_concurrent", 1), ("retries", 0), ("backoff", 0)):
            check_setting(kind, name, getattr(self, name), least, whole=name != "backoff")
        check_positive(kind, "timeout", self.timeout, "seconds")
        check_positive(kind, "max_answer_mb", self.max_answer_mb, "megabytes")

    @property
    def __name__(self) -> str:
        return self.name or type(self).__qualname__

    def start(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> Callable[[], Series]:
        """Send the rows at once, and return a function that waits for their values."""
        raise NotImplementedError

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> Series:
        return self.start(prompts, completions, completion_ids, **columns)()

    def send(self, requests: Sequence[Mapping[str, Any]], read: Callable[[int, Any], Any]) -> Callable[[], list[Any]]:
        """Begin to post requests, and return a function that waits for all of their answers.

        Args:
            requests (`Sequence[Mapping]`):
                For each, what httpx2's `post` takes besides the address.
            read (`Callable`):
                Makes of the number of a request and its answer, parsed as JSON, what is wanted, or raises
                [`~rlhf_recipes.http.Failure`].
        """
        client = Client(
            self.url,
            timeout=self.timeout,
            retries=self.retries,
            most_bytes=self.max_answer_mb * MEGABYTE,
            backoff=self.backoff,
            max_concurrent=self.max_concurrent,
            token=self._token(),
            name=f"Reward {self.__name__!r}",
        )
        return functools.partial(wait_for, run_in_background(self._ask(client, requests, read)))

    def _token(self) -> str:
        token = os.environ.get(self.token_env, "").strip() if self.token_env else ""
        if not (token.isascii() and token.isprintable()):
            raise RewardError(
                f"Reward {self.__name__!r} takes its token from the environment variable {self.token_env}, which "
                "holds characters that no HTTP header can. Set it to the token alone."
            )
        return token

    async def _ask(
        self, client: Client, requests: Sequence[Mapping[str, Any]], read: Callable[[int, Any], Any]
    ) -> list[Any]:
        try:
            return await client.post_all(requests, read)
        except Failure as failure:
            tries = f" (attempt {failure.attempts} of {self.retries + 1})" if failure.again else ""
            raise RewardError(
                f"{client.name} got no values from {client.way}: {sentence(failure.problem + tries)} "
                f"{self._advice(failure, client.token)}"
            ) from None

    def _advice(self, failure: Failure, token: str) -> str:
        if failure.code not in (401, 403):
            redirected = failure.code is not None and failure.code < 400
            return "Give the url that it redirects to." if redirected else ADVICE.get(failure.code, failure.advice)
        if self.token_env:
            state = "set" if token else "not set"
            return f"The token comes from the environment variable {self.token_env}, which is {state}."
        return "No token was sent: name the environment variable that holds it as token_env."


@dataclass(frozen=True)
class RemoteReward(HTTPReward):
    """The values that a server gives to the rows; the protocol is that of this module.

    Texts and messages go as they are. The rows of one prompt always travel in one request, so that the server may
    compare them; the others are cut into batches. A row has the value that the server gives to it: bad input (an empty
    completion, a text of any length or script) is defined there.

    Args:
        batch_size (`int`, *optional*, defaults to 32):
            Rows in one request; more only where one prompt has more completions.
        columns (`Sequence[str]`, *optional*):
            The dataset's columns that the server is given. Default: all that JSON can hold. Images, bytes, tensors
            and dates stay here, which is logged once, and so do the trainer's own `trainer_state`, `log_extra` and
            `log_metric`. `[]` sends none.
        send_ids (`bool`, *optional*, defaults to `True`):
            Whether to send `completion_ids`, which rewards that count tokens need.
        url, max_concurrent, timeout, retries, max_answer_mb, backoff, token_env, name:
            As for [`HTTPReward`].

    Raises:
        `ValueError`: if a setting is not what it can be; if a column that `columns` names is not there or not JSON; if
            a prompt or completion holds what JSON cannot, such as an image.
        [`RewardError`]: if the server cannot be reached, is too slow, refuses, or answers anything but one finite
            number or null for each row.

    Example:

    ```python
    reward = RemoteReward("http://localhost:8000/score", name="quality", columns=["answer"])
    reward(prompts=["2 + 2 ="], completions=[" 4"], completion_ids=[[220]], answer=["4"])  # [1.0]

    finish = reward.start(prompts=["2 + 2 ="], completions=[" 4"], answer=["4"])  # is on its way
    finish()  # [1.0]
    ```
    """

    batch_size: int = field(default=32, kw_only=True)
    columns: Sequence[str] | None = field(default=None, kw_only=True)
    send_ids: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("RemoteReward", "batch_size", self.batch_size, least=1, whole=True)
        if isinstance(self.columns, str):
            raise ValueError(f"columns of RemoteReward is {self.columns!r}; give a list of names.")
        if self.columns is not None:
            object.__setattr__(self, "columns", tuple(self.columns))

    def start(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> Callable[[], Series]:
        given: dict[str, Sequence[Any]] = {"prompts": prompts, "completions": completions}
        if self.send_ids and completion_ids is not None:
            given["completion_ids"] = completion_ids
        chosen = self._chosen(columns, len(completions))
        batches = cut_by_prompt(prompts, self.batch_size)
        requests = [_json_request(given, chosen, rows) for rows in batches]
        fetch = self.send(requests, lambda number, answer: _read_rewards(answer, batches[number]))
        return functools.partial(_in_order, fetch, batches)

    def _chosen(self, columns: Mapping[str, Any], size: int) -> dict[str, Sequence[Any]]:
        """The columns that are sent."""
        there = {name: values for name, values in columns.items() if name not in OF_THE_TRAINER}
        wrong = {name: problem for name, values in there.items() if (problem := _not_json(values, size))}
        if self.columns is None:
            if wrong:
                _warn_of_what_stays(self.__name__, tuple(sorted(wrong)))
            return {name: values for name, values in there.items() if name not in wrong}
        for name in self.columns:
            if name not in there:
                raise ValueError(
                    f"Reward {self.__name__!r} is to send the column {name!r}, but the dataset has "
                    f"{', '.join(map(repr, there)) or 'none'}. Name one of these in columns, or add it."
                )
            if name in wrong:
                raise ValueError(
                    f"Reward {self.__name__!r} is to send the column {name!r}, but it is no JSON: {wrong[name]}. "
                    "Take it out of columns, or turn it into numbers or text."
                )
        return {name: there[name] for name in self.columns}


def _check_url(url: str, kind: str) -> None:
    if "@" in url.partition("//")[2].partition("/")[0]:  # and so the message must not show it
        raise ValueError(
            f"The url of {kind} holds a user or a password, and settings end up in logs and files. Take them out, and "
            "put a token into the environment variable that token_env names."
        )
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets or a port that cannot be
        fits = False
    if not fits:
        raise ValueError(f"The url of {kind} is {url!r}; give one such as 'http://localhost:8000/score'.")


def cut_by_prompt(prompts: Sequence[Text], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of at most `batch_size`, rows of one prompt together even if they are more."""
    rows_of: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(prompt if isinstance(prompt, str) else repr(prompt), []).append(row)
    batches: list[list[int]] = []
    for rows in rows_of.values():
        if batches and len(batches[-1]) + len(rows) <= batch_size:
            batches[-1] += rows
        else:
            batches.append(list(rows))
    return batches


def _json_request(
    given: Mapping[str, Sequence[Any]], columns: Mapping[str, Sequence[Any]], rows: Sequence[int]
) -> dict[str, Any]:
    body: dict[str, Any] = {name: [values[row] for row in rows] for name, values in given.items()}
    body["columns"] = {name: [values[row] for row in rows] for name, values in columns.items()}
    try:
        content = json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The rows hold what JSON cannot ({error}): prompts and completions must be texts or messages of text."
        ) from None
    return {"content": content, "headers": {"Content-Type": "application/json"}}


def _read_rewards(answer: Any, rows: Sequence[int]) -> Series:
    rewards = answer.get("rewards") if isinstance(answer, dict) else None
    if not isinstance(rewards, list):
        raise rubbish(f"{excerpt(json.dumps(answer))}, which has no list called rewards")
    if len(rewards) != len(rows):
        raise rubbish(f"{len(rewards)} rewards for {len(rows)} rows")
    for row, value in zip(rows, rewards, strict=True):
        if value is not None and not is_finite(value):
            raise rubbish(f"{excerpt(json.dumps(value))} for row {row}; it must be a finite number or null")
    return [None if value is None else float(value) for value in rewards]


def _in_order(fetch: Callable[[], list[Series]], batches: Sequence[Sequence[int]]) -> Series:
    """The values of all batches, in the order of the rows."""
    value_of = {
        row: value
        for rows, values in zip(batches, fetch(), strict=True)
        for row, value in zip(rows, values, strict=True)
    }
    return [value_of[row] for row in range(len(value_of))]


def _not_json(values: Any, size: int) -> str:
    """Why a column cannot be sent; empty if it can."""
    if not isinstance(values, (list, tuple)) or len(values) != size:
        return f"{type(values).__name__}, not a list with a value for each row"
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    return ""


@functools.cache
def _warn_of_what_stays(name: str, columns: tuple[str, ...]) -> None:
    logger.warning("Reward %r does not send %s, which JSON cannot hold. This is said once.", name, ", ".join(columns))
