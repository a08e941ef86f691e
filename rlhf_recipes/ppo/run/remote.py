"""Completions from a server: a [`~rlhf_recipes.modeling.generation.Generator`] that sends and gets ids over HTTP.

The protocol is two requests in JSON, so that a wrapper around any engine can answer them:

    POST /load      {"folder": "..."}                               the policy's weights, saved there; answer {}
    POST /generate  {"prompt_ids": [[...], ...], "row_keys": [...], "sampling": {"max_new_tokens": 20, ...}}
                    -> {"completion_ids": [[...], ...]}             end-of-sequence token kept, no padding

Text never travels: encoding a completion again may give other tokens than were sampled, and their log-probabilities
would be of another text. The log-probabilities themselves are computed by the trainer, so an engine that rounds in its
own way changes which completions are drawn, not what is computed of them.

A server on this machine is asked directly, others through the proxy that the environment names for them, if it does.
No more of an answer is read than the completions that were asked for can take.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig

from rlhf_recipes.http import MEGABYTE, Client, Failure, excerpt, rubbish
from rlhf_recipes.modeling.generation import pad_right
from rlhf_recipes.modeling.saving import save_policy
from rlhf_recipes.rewards.contract.concurrent import run_in_background, wait_for

SMALL_ANSWER = MEGABYTE  # bytes of an answer besides token ids
LONGEST_ID = 32  # bytes of one, in a list that may stand indented over several lines


class HTTPGenerator:
    """Asks a server for completions, and gives it the policy's weights before each rollout.

    Args:
        url (`str`): Where the server is, such as `"http://localhost:8000"`.
        weights_folder (`str` or `Path`): A folder that the trainer can write and the server can read.
        timeout (`float`, *optional*, defaults to 600): Seconds for one request.
        retries (`int`, *optional*, defaults to 3): Attempts after a connection failed or the server answered 5xx.

    Raises:
        `ConnectionError`: if the server cannot be reached, or answers with an error; it names the proxy in between.
        `ValueError`: if its answer is not what was asked for.
    """

    def __init__(self, url: str, weights_folder: str | Path, timeout: float = 600, retries: int = 3) -> None:
        self.url = url.rstrip("/")
        self.weights_folder = Path(weights_folder)
        self.timeout = timeout
        self.retries = retries

    def sync(self, policy: Any) -> None:
        """Save the policy, adapters merged in, and have the server load it; the trainer calls it before sampling."""
        save_policy(policy, self.weights_folder, merge=isinstance(policy, PeftModel))
        self._post("load", {"folder": str(self.weights_folder.absolute())})

    def generate(self, prompt_ids: Tensor, mask: Tensor, config: GenerationConfig, row_keys: Sequence[int]) -> Tensor:
        prompts = [row[real.bool()].tolist() for row, real in zip(prompt_ids, mask, strict=True)]
        answer = self._post(
            "generate",
            {"prompt_ids": prompts, "row_keys": list(row_keys), "sampling": config.to_diff_dict()},
            len(prompts) * config.max_new_tokens * LONGEST_ID + SMALL_ANSWER,
        )
        rows: Any = answer.get("completion_ids")
        fits = isinstance(rows, list) and len(rows) == len(prompts) and all(isinstance(row, list) for row in rows)
        if not fits or not all(0 < len(row) <= config.max_new_tokens for row in rows):
            raise ValueError(
                f"{self.url}/generate was asked for {len(prompts)} completions of 1 to {config.max_new_tokens} tokens "
                f"and answered {json.dumps(answer)[:200]}. It must give completion_ids, one list for each prompt."
            )
        ends = set(config.eos_token_id or ())
        open_ended = [row for row in rows if len(row) < config.max_new_tokens and row[-1] not in ends]
        if open_ended and not config.stop_strings:
            raise ValueError(
                f"{self.url}/generate answered a completion of {len(open_ended[0])} tokens that neither ends with one "
                f"of {sorted(ends)} nor has all {config.max_new_tokens}. Keep ends, and end it by nothing else."
            )
        width = max(len(row) for row in rows)
        return pad_right(rows, config.pad_token_id, width, device=prompt_ids.device, dtype=torch.long)

    def _post(self, name: str, body: dict[str, Any], largest: int = SMALL_ANSWER) -> dict[str, Any]:
        """Post a request, and read an answer of at most `largest` bytes."""
        client = Client(f"{self.url}/{name}", self.timeout, self.retries, largest)
        try:
            (answer,) = wait_for(run_in_background(client.post_all([{"json": body}], _read_object)))
        except Failure as failure:
            if failure.code is None and not failure.again:  # it did answer
                raise ValueError(f"{client.url}: {failure.problem}.") from None
            raise ConnectionError(
                f"{client.way} failed after {failure.attempts} attempts: {failure.problem}."
            ) from None
        return dict(answer)


def _read_object(number: int, answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise rubbish(f"{excerpt(json.dumps(answer))}, and no object")
    return answer
