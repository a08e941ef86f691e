"""Rewards from a server: rows go out as JSON over HTTP, numbers come back.

The protocol is one request, so that a wrapper around any model or service can answer it. `recipes/serve_reward.py`
serves any reward of this project that way:

    POST {url}  {"prompts": [...], "completions": [...], "completion_ids": [[...], ...], "columns": {"name": [...]}}
                -> {"rewards": [0.5, null, ...]}     one finite number for each row, or null: does not apply

A server that cannot be used ends the run with a [`RewardError`] that says why. No failure becomes a number: a 0 for
what nobody has judged would be learned from like any other.
"""

import asyncio
import contextlib
import functools
import json
import logging
import math
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from rlhf_recipes.errors import RewardError
from rlhf_recipes.http import proxy_of, read_at_most, through
from rlhf_recipes.imports import optional
from rlhf_recipes.rewards.base import Series
from rlhf_recipes.rewards.contract.checks import check_setting
from rlhf_recipes.rewards.contract.concurrent import run_in_background, wait_for
from rlhf_recipes.statistics import is_finite
from rlhf_recipes.texts import Text, sentence

logger = logging.getLogger(__name__)
TOKEN_ENV = "REWARD_API_TOKEN"
LONGEST_PAUSE = 60.0  # seconds between two attempts; a server that asks for more has failed
OF_THE_TRAINER = frozenset({"trainer_state", "log_extra", "log_metric", "prompt_ids", "ref_logprobs"})

# The jitter draws from here: the global generator belongs to the run, which must be able to go on exactly.
_dice = random.Random()


class Failure(Exception):
    """One attempt that failed: what the server did, what the user can do, and whether another attempt may help."""

    def __init__(self, problem: str, advice: str, again: bool = False, pause: float = 0.0) -> None:
        super().__init__(problem)
        self.problem, self.advice, self.again, self.pause = problem, advice, again, pause


@dataclass(frozen=True)
class HTTPReward:
    """What the rewards of this project that ask a server have in common; a subclass defines `start`.

    Requests run side by side on the event loop that all rewards of the process share. Each is tried again, after
    pauses that double and are shortened at random, where the connection failed, no answer came in time, or the server
    said 429 or 5xx; a `Retry-After` of up to 60 seconds is waited for. Other answers are final. An interrupted wait
    (Ctrl-C) cancels what is under way. An address of this machine itself (`localhost`, `127.0.0.1`) is asked directly;
    others through the proxy that the environment names for them, if it does.

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
        for library in ("httpx2", "tenacity"):
            optional(library, kind)
        _check_url(self.url, kind)
        for name, least in (("max_concurrent", 1), ("retries", 0), ("backoff", 0)):
            check_setting(kind, name, getattr(self, name), least, whole=name != "backoff")
        for name, unit in (("timeout", "seconds"), ("max_answer_mb", "megabytes")):
            if not is_finite(getattr(self, name)) or getattr(self, name) <= 0:
                raise ValueError(f"{name} of {kind} is {getattr(self, name)}; it must be a number of {unit} above 0.")

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
                Makes of the number of a request and its answer, parsed as JSON, what is wanted, or raises `Failure`.
        """
        return functools.partial(wait_for, run_in_background(self._ask_all(requests, read, self._token())))

    def _token(self) -> str:
        token = os.environ.get(self.token_env, "").strip() if self.token_env else ""
        if not (token.isascii() and token.isprintable()):
            raise RewardError(
                f"Reward {self.__name__!r} takes its token from the environment variable {self.token_env}, which "
                "holds characters that no HTTP header can. Set it to the token alone."
            )
        return token

    async def _ask_all(
        self, requests: Sequence[Mapping[str, Any]], read: Callable[[int, Any], Any], token: str
    ) -> list[Any]:
        import httpx2

        free = asyncio.Semaphore(self.max_concurrent)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # The client limits nothing itself: the time of a request begins when it is its turn.
        everything = httpx2.Limits()
        async with httpx2.AsyncClient(
            verify=_tls(), timeout=None, limits=everything, headers=headers, proxy=proxy_of(self.url), trust_env=False
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:  # the first that fails ends the others
                    tasks = [
                        group.create_task(self._ask(client, free, request, functools.partial(read, number)))
                        for number, request in enumerate(requests)
                    ]
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _ask(
        self, client: Any, free: asyncio.Semaphore, request: Mapping[str, Any], read: Callable[[Any], Any]
    ) -> Any:
        import tenacity

        attempts = tenacity.AsyncRetrying(
            sleep=asyncio.sleep,
            stop=tenacity.stop_after_attempt(self.retries + 1),
            wait=self._pause,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, Failure) and error.again),
            before_sleep=self._tell,
            reraise=True,
        )
        async with free:
            try:
                return read(await attempts(self._attempt, client, request))
            except Failure as failure:
                made = attempts.statistics["attempt_number"]
                tries = f" (attempt {made} of {self.retries + 1})" if failure.again else ""
                raise RewardError(
                    f"Reward {self.__name__!r} got no values from {self._shown_url}{through(proxy_of(self.url))}: "
                    f"{sentence(_without(_token_of(client), failure.problem) + tries)} {failure.advice}"
                ) from None

    async def _attempt(self, client: Any, request: Mapping[str, Any]) -> Any:
        """Post one request and return its answer, parsed as JSON."""
        import httpx2

        try:
            async with asyncio.timeout(self.timeout):
                async with client.stream("POST", self.url, **request) as response:
                    body = await read_at_most(response, self.max_answer_mb)
        except TimeoutError:
            raise Failure(
                f"it did not answer within {self.timeout:g} s",
                "Give it a longer timeout, or less at once (max_concurrent, batch_size).",
                again=True,
            ) from None
        except httpx2.RequestError as error:
            raise Failure(
                f"it cannot be reached ({str(error) or type(error).__name__})",
                "Check that the server runs and that the url is right.",
                again=isinstance(error, httpx2.TransportError),
            ) from None
        if body is None:
            raise Failure(
                f"its answer is larger than {self.max_answer_mb:g} MB",
                "Check that the url is that of a server with this protocol, or raise max_answer_mb.",
            )
        if not response.is_success:
            raise self._refusal(response, body, _token_of(client))
        try:
            return json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            said = _excerpt(_without(_token_of(client), body.decode(errors="replace")))
            raise rubbish(f"something that is no JSON ({error}): {said}") from None

    def _refusal(self, response: Any, body: bytes, token: str) -> Failure:
        """What an answer other than 2xx means."""
        code = response.status_code
        said = _excerpt(_without(token, _detail(body)))
        problem = f"it answered {code} {response.reason_phrase}".rstrip() + (f": {said}" if said else "")
        if code == 429 or code >= 500:
            pause = _retry_after(response.headers.get("Retry-After", ""))
            if pause > LONGEST_PAUSE:
                return Failure(f"{problem}, and asks to wait {pause:.0f} s", "Try again then, or use another server.")
            return Failure(problem, "Look into the server's log.", again=True, pause=pause)
        if code not in (401, 403):
            advice = "Give the url that it redirects to." if code < 400 else _ADVICE.get(code, "Look into its log.")
        elif self.token_env:
            state = "set" if token else "not set"
            advice = f"The token comes from the environment variable {self.token_env}, which is {state}."
        else:
            advice = "No token was sent: name the environment variable that holds it as token_env."
        return Failure(problem, advice)

    def _pause(self, state: Any) -> float:
        """Seconds until the next attempt."""
        full = min(self.backoff * 2.0 ** (state.attempt_number - 1), LONGEST_PAUSE)
        return max(full * _dice.uniform(0.5, 1.0), state.outcome.exception().pause)

    def _tell(self, state: Any) -> None:
        logger.warning(
            "Reward %r: %s, %s. Attempt %d of %d follows in %.1f s.",
            *(self.__name__, self._shown_url + through(proxy_of(self.url)), state.outcome.exception().problem),
            *(state.attempt_number + 1, self.retries + 1, state.next_action.sleep),
        )

    @property
    def _shown_url(self) -> str:
        return re.split("[?#]", self.url, maxsplit=1)[0]  # what follows may be a key


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


def rubbish(what: str) -> Failure:
    """The failure of a server that answered something else than it should."""
    return Failure(f"it answered {what}", "Check that the url is that of a server with this protocol.")


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
        raise rubbish(f"{_excerpt(json.dumps(answer))}, which has no list called rewards")
    if len(rewards) != len(rows):
        raise rubbish(f"{len(rewards)} rewards for {len(rows)} rows")
    for row, value in zip(rows, rewards, strict=True):
        if value is not None and not _is_number(value):
            raise rubbish(f"{_excerpt(json.dumps(value))} for row {row}; it must be a finite number or null")
    return [None if value is None else float(value) for value in rewards]


def _in_order(fetch: Callable[[], list[Series]], batches: Sequence[Sequence[int]]) -> Series:
    """The values of all batches, in the order of the rows."""
    value_of = {
        row: value
        for rows, values in zip(batches, fetch(), strict=True)
        for row, value in zip(rows, values, strict=True)
    }
    return [value_of[row] for row in range(len(value_of))]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


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


@functools.cache
def _tls() -> ssl.SSLContext:
    # Reading the certificates takes as long as many requests.
    import httpx2

    return httpx2.create_ssl_context()


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _retry_after(value: str) -> float:
    """Seconds that a `Retry-After` header asks to wait, as a number or as a date; 0 where it says neither."""
    if value.strip().isdecimal():
        return float(value)
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _detail(body: bytes) -> str:
    """What a server says of its refusal: FastAPI's `detail`, or the body as it is."""
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(body)
        detail = answer.get("detail", answer) if isinstance(answer, dict) else answer
        return detail if isinstance(detail, str) else json.dumps(detail)
    return body.decode(errors="replace")


def _token_of(client: Any) -> str:
    return str(client.headers.get("Authorization", "")).removeprefix("Bearer ")


def _without(token: str, text: str) -> str:
    """A text of the server's, for the case that it says what it was sent."""
    return text.replace(token, "***") if token else text


def _excerpt(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}..."


_ADVICE = {
    400: "Mend the rows or the settings.",
    404: "Check the path of the url: /score of recipes/serve_reward.py, /v2/check of LanguageTool.",
    405: "Check the path of the url: /score of recipes/serve_reward.py, /v2/check of LanguageTool.",
    413: "Send less in one request (batch_size of RemoteReward), or let the server take more.",
    422: "Mend the rows, the columns or the server's rewards.",
}
