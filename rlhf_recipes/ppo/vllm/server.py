"""The requests of vLLM's OpenAI-compatible server that a rollout needs.

    GET  /v1/models                what is served, how long a text may be, and which adapters are loaded
    POST /tokenize                 a text as the server's tokenizer reads it
    POST /v1/completions           token ids in; token ids and their log-probabilities out
    POST /v1/load_lora_adapter     an adapter, by its name and folder (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)
    POST /v1/unload_lora_adapter   an adapter, by its name
    POST /collective_rpc           the weights of the whole model, by their folder (VLLM_SERVER_DEV_MODE=1)
    POST /reset_prefix_cache       what was computed with the weights before (VLLM_SERVER_DEV_MODE=1)

A server on this machine is asked directly, others through the proxy that the environment names for them, if it does.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_recipes.http import MEGABYTE, Client, Failure, excerpt, rubbish
from rlhf_recipes.rewards.contract.concurrent import run_in_background, wait_for

TOKEN_BYTES = 1000  # of an answer, for a token: its id, log-probability, name and place
KEY = "VLLM_API_KEY"  # the variable from which the server takes its key too
GO_ON = (
    "Start it (docs/vllm.md) or look into its log; a run goes on from its last checkpoint with "
    "--resume_from_checkpoint auto."
)
# What does nothing. All are sent: a server fills those that are left out from the model's generation_config.json.
NOTHING = {
    "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
# What vLLM says of an adapter or of weights that it does not take, and what to do.
REMEDIES = {
    "max_lora_rank": "Start the server with --max-lora-rank {rank} or more.",
    "lora is not enabled": "Start the server with --enable-lora.",
    "no adapter found": "The server must see the run's folder under the same path: put output_dir on a disk of both.",
    "repo id": "The server must see the run's folder under the same path: put output_dir on a disk of both.",
    "404 not found": "Start the server with {switch}=1 in its environment.",
}


@dataclass(frozen=True)
class Completion:
    """What a server has written for one prompt."""

    ids: list[int]
    logprobs: list[float]  # of each token


@dataclass(frozen=True)
class VLLMServer:
    """A vLLM server at an address.

    Args:
        url (`str`): Where it is, with or without `/v1`.
        timeout (`float`, *optional*, defaults to 600): Seconds for one request.
        retries (`int`, *optional*, defaults to 3): Attempts after a connection failed or the server answered 5xx.

    Every method raises:
        `ConnectionError`: if the server cannot be reached or fails; it names the proxy in between.
        `ValueError`: if it refuses, or answers something else than was asked for.
    """

    url: str
    timeout: float = 600
    retries: int = 3

    def models(self) -> list[dict[str, Any]]:
        """What is served: the model with `id`, `root` and `max_model_len`, then adapters, which have a `parent`."""

        def read(number: int, answer: Any) -> Any:
            models = answer.get("data") if isinstance(answer, dict) else None
            if not models or not all(isinstance(model, dict) and "id" in model for model in models):
                raise rubbish(f"{excerpt(str(answer))}, and no list of models")
            return models

        return list(self._ask("/v1/models", [{}], read, method="GET")[0])

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of texts, without those that a tokenizer adds around a text."""

        def read(number: int, answer: Any) -> Any:
            if not isinstance(answer, dict) or not isinstance(answer.get("tokens"), list):
                raise rubbish(f"{excerpt(str(answer))}, and no tokens")
            return answer["tokens"]

        bodies = [{"json": {"prompt": text, "add_special_tokens": False}} for text in texts]
        return self._ask("/tokenize", bodies, read)

    def complete(self, model: str, requests: Sequence[Mapping[str, Any]]) -> list[Completion]:
        """A completion for each request of `/v1/completions`: `prompt` (token ids), `max_tokens` and more."""

        def read(number: int, answer: Any) -> Completion:
            return _completion(model, requests[number]["max_tokens"], answer)

        fixed = {"model": model, "logprobs": 0, "return_token_ids": True, "return_tokens_as_token_ids": True}
        most = max(request["max_tokens"] for request in requests) * TOKEN_BYTES
        return self._ask("/v1/completions", [{"json": {**fixed, **request}} for request in requests], read, most=most)

    def load_adapter(self, name: str, folder: Path, rank: int) -> None:
        body = {"lora_name": name, "lora_path": str(folder)}
        self._load("/v1/load_lora_adapter", body, rank=rank, switch="VLLM_ALLOW_RUNTIME_LORA_UPDATING", text=True)

    def unload_adapter(self, name: str) -> None:
        self._ask("/v1/unload_lora_adapter", [{"json": {"lora_name": name}}], text=True)

    def load_weights(self, folder: Path) -> None:
        """Take over a whole model, and forget what was computed with the weights before."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self._load("/collective_rpc", body, switch="VLLM_SERVER_DEV_MODE")
        self._load("/reset_prefix_cache", {}, switch="VLLM_SERVER_DEV_MODE")

    def _load(self, path: str, body: dict[str, Any], text: bool = False, **known: Any) -> None:
        # Not again: 500 is how vLLM says that it does not take an adapter.
        client = self._client(path, retries=0, text=text)
        try:
            wait_for(run_in_background(client.post_all([{"json": body}])))
        except Failure as failure:
            if failure.again and " 500 " not in failure.problem:
                raise ConnectionError(f"{client.way}: {failure.problem}. {GO_ON}") from None
            said = failure.problem.lower()
            remedy = next((text for key, text in REMEDIES.items() if key in said), "docs/vllm.md says what it takes.")
            raise ValueError(f"{client.way}: {failure.problem}. {remedy.format(**known)}") from None

    def _ask(
        self,
        path: str,
        requests: Sequence[Mapping[str, Any]],
        read: Callable[[int, Any], Any] = lambda number, answer: answer,
        most: float = 0,
        **options: Any,
    ) -> list[Any]:
        client = self._client(path, retries=self.retries, most_bytes=most + MEGABYTE, **options)
        try:
            return wait_for(run_in_background(client.post_all(requests, read)))
        except Failure as failure:
            if failure.again:
                raise ConnectionError(
                    f"The vLLM server at {client.way} failed after {failure.attempts} attempts: {failure.problem}. "
                    f"{GO_ON}"
                ) from None
            advice = {401: f"Put the server's key into the environment variable {KEY}."}.get(failure.code or 0)
            said = advice or "vllm_server_base_url must be that of a vLLM server (docs/vllm.md)."
            raise ValueError(f"{client.way}: {failure.problem}. {said}") from None

    def _client(self, path: str, **options: Any) -> Client:
        url = self.url.rstrip("/").removesuffix("/v1") + path
        given = {"most_bytes": MEGABYTE, **options}
        # vLLM puts requests into batches itself: the more of them it has, the faster it is.
        return Client(url, self.timeout, max_concurrent=1024, token=os.environ.get(KEY, ""), name="vLLM", **given)


def _completion(model: str, max_tokens: int, answer: Any) -> Completion:
    """What an answer of `/v1/completions` holds, or [`Failure`]."""
    try:
        (choice,) = answer["choices"]
        ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        fits = len(ids) == len(logprobs) and 0 < len(ids) <= max_tokens
        fits = fits and all(type(x) is int for x in ids) and all(isinstance(x, float | int) for x in logprobs)
    except (LookupError, TypeError, ValueError):
        fits = False
    if not fits:
        raise rubbish(f"{excerpt(str(answer))}, and not the ids and log-probabilities of 1 to {max_tokens} tokens")
    if answer.get("model") != model:
        raise rubbish(f"with the model {answer.get('model')!r}, and {model!r} was asked for")
    return Completion(ids, logprobs)
