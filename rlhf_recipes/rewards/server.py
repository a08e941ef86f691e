"""Any reward behind HTTP, for [`~rlhf_recipes.rewards.remote.RemoteReward`] or for whatever can send JSON.

    POST /score   {"prompts": [...], "completions": [...], "completion_ids": [[...], ...], "columns": {"name": [...]}}
                  -> {"rewards": [0.5, null, ...], "parts": {"name": [0.5, null, ...]}}
    GET  /health  -> {"name": "...", "parts": ["..."], "weights": [1.0]}
    GET  /openapi.json                                   both requests as a schema

`completion_ids` and `columns` may be left out. `rewards` are the weighted sums, null where no reward applies to a row;
`parts` are the values of each reward before weighting. A refusal is `{"detail": "a sentence"}`: 401 for a wrong token,
413 for too much at once, 422 for rows that do not fit, that a reward fails on, or that take it too long.

The rewards see one request at a time, in one thread. Requests are not joined into larger batches: a reward may compare
the completions of a prompt, and then those of another client would change its values. A request that takes longer than
`max_seconds` is refused, and the others go on in another thread: Python cannot stop the first, which is left behind.
"""

import asyncio
import functools
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from rlhf_recipes.errors import RewardError
from rlhf_recipes.http import MEGABYTE
from rlhf_recipes.imports import optional
from rlhf_recipes.rewards.base import Parts, RewardFunction, Series, compute_rewards
from rlhf_recipes.rewards.contract.checks import check_positive, check_setting, reward_name
from rlhf_recipes.rewards.remote import TOKEN_ENV
from rlhf_recipes.rewards.weighted_sum import WeightedSum
from rlhf_recipes.texts import as_text

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)
GONE = "The client has closed the connection."

# Seconds that the requests under way have when the server is told to end.
LAST_SECONDS = 5

# What a reward may ask for and the protocol does not carry.
NOT_CARRIED = {
    "per_token": "gives one number for each token, and the protocol has one for each row",
    "wants_prompt_ids": "wants prompt_ids, which the protocol does not carry",
    "wants_ref_logprobs": "wants ref_logprobs, which the protocol does not carry",
}


def make_app(
    reward: RewardFunction,
    token_env: str | None = TOKEN_ENV,
    max_rows: int = 1024,
    max_body_mb: float = 16,
    max_text_mb: float = 1,
    max_seconds: float = 60,
) -> "FastAPI":
    """A FastAPI app that scores rows with a reward.

    Args:
        reward (`RewardFunction`): A [`WeightedSum`], or any single reward.
        token_env (`str`, *optional*, defaults to `"REWARD_API_TOKEN"`):
            The environment variable with the bearer token that `/score` asks for. Where it is not set, or this is
            `None`, it asks for none. `/health` never does.
        max_rows (`int`, *optional*, defaults to 1024): Rows in one request.
        max_body_mb (`float`, *optional*, defaults to 16): Size of one request, in units of 2^20 bytes.
        max_text_mb (`float`, *optional*, defaults to 1):
            Length of one prompt or completion, in units of 2^20 characters. One that is longer is refused: a rule
            would keep all other clients waiting while it reads it, and no model reads so much.
        max_seconds (`float`, *optional*, defaults to 60):
            How long the rewards may take for one request, once it is its turn.

    Raises:
        `ValueError`: if the reward cannot be served, because it is per token or wants what only a trainer has.
    """
    optional("fastapi", "A reward server", extra="serve")
    from fastapi import FastAPI, HTTPException, Request

    rewards = _as_sum(reward)
    check_setting("a reward server", "max_rows", max_rows, least=1, whole=True)
    for name, limit in (("max_body_mb", max_body_mb), ("max_text_mb", max_text_mb), ("max_seconds", max_seconds)):
        check_positive("a reward server", name, limit)
    parse, schema = _parser()
    worker, turn = Worker(), asyncio.Lock()
    # FastAPI's pages of documentation would have a browser fetch scripts from elsewhere.
    app = FastAPI(title=f"Reward {rewards.__name__}", docs_url=None, redoc_url=None)
    body_schema = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

    @app.post("/score", openapi_extra=body_schema)
    async def score(request: Request) -> dict[str, Any]:
        if not _is_admitted(request.headers.get("Authorization", ""), token_env):
            said = f"This server wants the token that its {token_env} holds, as a bearer token."
            raise HTTPException(401, said, {"WWW-Authenticate": "Bearer"})
        body = await _read_body(request, max_body_mb)
        try:
            batch = parse(body)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        _check_size(batch, max_rows, max_text_mb)
        async with turn:
            if await request.is_disconnected():  # it has given up, and will ask again: do not score twice
                raise HTTPException(499, GONE)
            return await _scored(worker, rewards, batch, max_seconds)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"name": rewards.__name__, "parts": list(rewards.names), "weights": list(rewards.weights)}

    return app


async def _read_body(request: Any, max_body_mb: float) -> bytes:
    from fastapi import HTTPException
    from starlette.requests import ClientDisconnect

    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_body_mb * MEGABYTE:
                raise HTTPException(413, f"The request is larger than {max_body_mb:g} MB; send less at once.")
    except ClientDisconnect:
        raise HTTPException(499, GONE) from None
    return bytes(body)


def _check_size(batch: dict[str, Any], max_rows: int, max_text_mb: float) -> None:
    from fastapi import HTTPException

    if len(batch["completions"]) > max_rows:
        raise HTTPException(413, f"{len(batch['completions'])} rows are more than {max_rows}; send fewer at once.")
    longest = max((len(as_text(text)) for name in ("prompts", "completions") for text in batch[name]), default=0)
    if longest > max_text_mb * MEGABYTE:
        raise HTTPException(
            413,
            f"A text of {longest} characters is longer than {max_text_mb:g} MB (max_text_mb of this server). Cut "
            "it, or start the server with more.",
        )


async def _scored(worker: "Worker", rewards: WeightedSum, batch: dict[str, Any], max_seconds: float) -> dict[str, Any]:
    from fastapi import HTTPException

    try:
        scored = asyncio.wrap_future(worker.submit(score_rows, rewards, batch))
        return await asyncio.wait_for(scored, max_seconds)
    except TimeoutError:
        worker.replace()
        said = (
            f"{', '.join(rewards.names)} took longer than {max_seconds:g} s for {len(batch['completions'])} "
            "rows (max_seconds of this server)."
        )
        logger.warning("%s Other requests go on in another thread.", said)
        # Final for a client that tries again what may help: the same would happen again.
        raise HTTPException(422, f"{said} Send less at once, or start the server with more.") from None
    except (RewardError, ValueError) as error:
        raise HTTPException(422, str(error)) from None


class Worker:
    """One thread for all requests, since torch makes a pool of threads for each thread that calls it.

    It does not keep the program from ending, and where it does not come back another takes its place.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=_work, args=(self._jobs,), name="reward", daemon=True).start()

    def replace(self) -> None:
        """Leave the thread behind, which ends when its work is done, and start another."""
        self._jobs.put(None)
        self._start()

    def submit(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Have the thread call a function when it is free."""
        future: Future[Any] = Future()
        self._jobs.put((future, functools.partial(function, *args)))
        return future


def _work(jobs: "SimpleQueue[Any]") -> None:
    while (job := jobs.get()) is not None:
        future, call = job
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(call())
        except BaseException as error:  # of whatever kind: it is raised where the result is waited for
            future.set_exception(error)


def score_rows(rewards: WeightedSum, batch: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request: the weighted sum of each row, `None` where no reward applies, and the parts."""
    parts = compute_rewards(rewards.reward_funcs, **batch)
    applies = [row for row in range(len(batch["completions"])) if any(own[row] is not None for own in parts.values())]
    sums: Series = [None] * len(batch["completions"])
    some: Parts = {name: [own[row] for row in applies] for name, own in parts.items()}
    for row, value in zip(applies, rewards.combine(some), strict=True):
        sums[row] = value
    return {"rewards": sums, "parts": parts}


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for connections; port 0 takes any that is free.

    Raises:
        `OSError`: if the address cannot be had; the message says what to change.
    """
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(
            f"Cannot listen at {host}, port {port}: {error.strerror}. Choose another host or port."
        ) from error
    # Otherwise each answer waits for 40 ms: head and body go separately, and the second for the first to be received.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(app: "FastAPI", listener: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; those under way have five seconds more."""
    uvicorn = optional("uvicorn", "A reward server", extra="serve")
    # With no configuration of its own, uvicorn's log goes where the program's goes.
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=LAST_SECONDS)
    uvicorn.Server(config).run(sockets=[listener])


def _as_sum(reward: RewardFunction) -> WeightedSum:
    rewards = reward if isinstance(reward, WeightedSum) else WeightedSum([reward], name=reward_name(reward))
    for name, func in zip(rewards.names, rewards.reward_funcs, strict=True):
        for attribute, reason in NOT_CARRIED.items():
            if getattr(func, attribute, False):
                raise ValueError(f"Reward {name!r} cannot be served: it {reason}. Let the trainer call it itself.")
    changing = [name for name, weight in zip(rewards.names, rewards.weights, strict=True) if callable(weight)]
    if changing:
        raise ValueError(
            f"The weight of reward {changing[0]!r} changes with the progress of a run, of which a server knows "
            "nothing. Serve it with a weight that is a number, and let the trainer change the weight of the "
            "RemoteReward."
        )
    return rewards


def _is_admitted(header: str, token_env: str | None) -> bool:
    token = os.environ.get(token_env, "").strip() if token_env else ""
    return not token or secrets.compare_digest(header.encode(), f"Bearer {token}".encode())


def _parser() -> tuple[Callable[[bytes], dict[str, Any]], dict[str, Any]]:
    """What makes a batch of a request's body, or raises `ValueError` with what does not fit; and its JSON schema."""
    from pydantic import BaseModel, ConfigDict, Field, ValidationError

    class Rows(BaseModel):
        model_config = ConfigDict(strict=True, extra="forbid")
        prompts: list[str | list[dict[str, Any]]]
        completions: list[str | list[dict[str, Any]]]
        completion_ids: list[list[int]] | None = None
        columns: dict[str, list[Any]] = Field(default_factory=dict)

    def parse(body: bytes) -> dict[str, Any]:
        try:
            batch = Rows.model_validate_json(body).model_dump()
        except ValidationError as error:
            places = [f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in error.errors()[:3]]
            more = "" if error.error_count() <= 3 else f" (and {error.error_count() - 3} more)"
            raise ValueError("; ".join(places) + more) from None
        _check_sizes(batch)
        return batch

    return parse, Rows.model_json_schema()


def _check_sizes(batch: dict[str, Any]) -> None:
    size = len(batch["completions"])
    ids: Sequence[Any] | None = batch["completion_ids"]
    sizes = {"prompts": len(batch["prompts"]), "completion_ids": size if ids is None else len(ids)}
    sizes |= {f"columns.{name}": len(values) for name, values in batch["columns"].items()}
    wrong = [f"{name} {number}" for name, number in sizes.items() if number != size]
    if wrong:
        raise ValueError(f"There are {size} completions, but {', '.join(wrong)}: give one for each row.")
