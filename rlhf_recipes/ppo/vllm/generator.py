"""Completions for PPO from a vLLM server, which is given the policy before each rollout.

Token ids travel in both directions and text never does: encoding a completion again may give other tokens than were
sampled. With the ids come their log-probabilities as the server drew them, at the temperature of the run, so that PPO
can weigh what the server and the trainer compute differently.

A LoRA policy is loaded as an adapter with a new name for each rollout, and the one before is unloaded. A policy that
is trained as a whole is loaded by vLLM's own update of weights from a folder. After each of both a probe compares the
server's log-probabilities with the policy's (see `probe.py`).
"""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel, PeftType
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rlhf_recipes import filenames
from rlhf_recipes.modeling.generation import Generated, completion_mask, distortions, pad_right, stable_key
from rlhf_recipes.modeling.saving import save_policy
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.vllm.probe import check_policy, check_tokenizer
from rlhf_recipes.ppo.vllm.server import NOTHING, VLLMServer

PREFIX = "rlhf-"
FOLDER = "vllm"  # in the folder of the run: what the server loads
DEFAULT_URL = "http://localhost:8000"
# The options of GenerationConfig that vLLM has too, and its names for them.
OPTIONS = {
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
}


def resolve_generator(args: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> "VLLMGenerator | None":
    """What `args.generator` asks for; `None` for the policy in this process.

    Raises:
        `ConnectionError`: if the server cannot be reached.
        `ValueError`: if it is no vLLM server, or has another tokenizer.
    """
    if args.generator == "local":
        return None
    server = VLLMServer(args.vllm_server_base_url or DEFAULT_URL, args.vllm_request_timeout)
    folder = Path(str(args.output_dir)) / FOLDER
    return VLLMGenerator(server, folder, tokenizer, rounds=bool(args.bf16 or args.fp16))


class VLLMGenerator:
    """A [`~rlhf_recipes.modeling.generation.Generator`] that asks a vLLM server.

    Args:
        server (`VLLMServer` or `str`): The server, or its address.
        folder (`str` or `Path`): Where the policy is saved for the server, which must see it under the same path.
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        rounds (`bool`, *optional*, defaults to `False`): Whether the trainer computes in less than float32.

    Raises:
        `ConnectionError`: if the server cannot be reached.
        `ValueError`: if it is no vLLM server, or has another tokenizer.
    """

    def __init__(
        self, server: VLLMServer | str, folder: str | Path, tokenizer: PreTrainedTokenizerBase, rounds: bool = False
    ) -> None:
        self.server = VLLMServer(server) if isinstance(server, str) else server
        self.folder = Path(folder).absolute()
        self.tokenizer = tokenizer
        self.rounds = rounds
        self.run = secrets.token_hex(4)  # a resumed run meets the adapters of the one before
        self.loads = 0
        self.base = next(model for model in self.server.models() if not model.get("parent"))
        self.served = ""  # the name of what holds the policy, from the first `sync` on
        check_tokenizer(self.server, tokenizer)

    def check(self, policy: Any, config: GenerationConfig, longest_prompt: int) -> None:
        """Raise `ValueError` where the server could not do what a run will ask for."""
        if isinstance(policy, PeftModel) and policy.active_peft_config.peft_type != PeftType.LORA:
            raise ValueError(
                f"The policy's adapters are {policy.active_peft_config.peft_type.value}, and vLLM loads LoRA alone. "
                "Train LoRA adapters, or take generator 'local'."
            )
        sampling_of(config, 0)
        if config.min_new_tokens and self.tokenizer.eos_token_id not in (config.eos_token_id or ()):
            raise ValueError(
                "min_new_tokens keeps back the end-of-sequence token in vLLM, though stop_token 'none' says that it "
                "ends nothing. Leave one of them out, or take generator 'local'."
            )
        limit, wanted = self.base.get("max_model_len"), longest_prompt + int(config.max_new_tokens)
        if limit is not None and wanted > limit:
            raise ValueError(
                f"The longest prompt has {longest_prompt} tokens, max_completion_length is {config.max_new_tokens}. "
                f"The vLLM server takes {limit} tokens for both: start it with --max-model-len {wanted} or more, or "
                "lower max_prompt_length or max_completion_length."
            )

    def sync(self, policy: Any) -> None:
        """Save the policy, have the server load it, and compare the two. Every process must call it."""
        if PartialState().is_main_process:
            if isinstance(policy, PeftModel):
                self._load_adapter(policy)
            else:
                self._load_whole(policy)
        (self.served,) = broadcast_object_list([self.served])

    def generate(
        self, prompt_ids: Tensor, mask: Tensor, config: GenerationConfig, row_keys: Sequence[int]
    ) -> Generated:
        """Completions `(B, T)`, and the log-probabilities `(B, T)` that they were drawn with.

        Where options change the distribution there are none: vLLM tells them of the changed one alone. A row that the
        server has ended where the trainer sees no end is continued: vLLM looks for stop strings in its own way.
        """
        assert self.served, "sync(policy) comes first"
        prompts = [row[real.bool()].tolist() for row, real in zip(prompt_ids, mask, strict=True)]
        ids: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))
        while rows:
            requests = [self._request(prompts[row], ids[row], config, row_keys[row]) for row in rows]
            for row, completion in zip(rows, self.server.complete(self.served, requests), strict=True):
                ids[row] += completion.ids
                logprobs[row] += completion.logprobs
            rows = [row for row in rows if not self._has_ended(ids[row], config)]
        width, device = max(len(row) for row in ids), prompt_ids.device
        told = None if distortions(config) else pad_right(logprobs, 0.0, width, device=device, dtype=torch.float32)
        return Generated(pad_right(ids, config.pad_token_id, width, device=device, dtype=torch.long), told)

    def _request(self, prompt: list[int], done: list[int], config: GenerationConfig, key: int) -> dict[str, Any]:
        seed = stable_key(key, len(done)) if done else key  # the noise that drew what is there is not drawn again
        return {"prompt": prompt + done, **sampling_of(config, seed, len(done))}

    def _has_ended(self, ids: list[int], config: GenerationConfig) -> bool:
        if len(ids) >= config.max_new_tokens:
            return True
        _, ended = completion_mask(torch.tensor([ids]), config.eos_token_id, config.stop_strings, self.tokenizer)
        return bool(ended[0])

    def _load_adapter(self, policy: PeftModel) -> None:
        self.loads += 1
        name = f"{PREFIX}{self.run}-{self.loads}"
        folder = save_policy(policy, self.folder / name)
        if not (folder / filenames.ADAPTER_CONFIG).is_file():  # peft gives an adapter with a name a folder of its own
            folder = folder / str(policy.active_adapter)
        config: Any = policy.active_peft_config
        self.server.load_adapter(name, folder, rank=max([config.r, *config.rank_pattern.values()]))
        check_policy(self.server, name, policy, self.tokenizer, self.rounds)
        self.served = name
        self._clean()

    def _load_whole(self, policy: Any) -> None:
        folder = save_policy(policy, self.folder / "weights")
        self.server.load_weights(folder)
        check_policy(self.server, self.base["id"], policy, self.tokenizer, self.rounds)
        self.served = self.base["id"]
        shutil.rmtree(folder)  # it is as large as the model

    def _clean(self) -> None:
        """Take away the adapters before this one, those of an interrupted run too, on the server and here."""
        for model in self.server.models():
            ours = model["id"].startswith(PREFIX) and Path(model.get("root") or "/").is_relative_to(self.folder)
            if ours and model["id"] != self.served:
                self.server.unload_adapter(model["id"])
        for folder in self.folder.glob(f"{PREFIX}*"):
            if folder.name != self.served:
                shutil.rmtree(folder)


def sampling_of(config: GenerationConfig, seed: int, done: int = 0) -> dict[str, Any]:
    """What a request of `/v1/completions` says of sampling, for a row of which `done` tokens are there.

    Raises:
        `ValueError`: for options of `GenerationConfig` that vLLM does not have, or that mean something else there.
    """
    strangers = [text for text in distortions(config) if text.split()[0] not in OPTIONS]
    if strangers:
        raise ValueError(
            f"generator is 'vllm', which has no option like {strangers[0]!r}; it knows {', '.join(OPTIONS)}. Leave it "
            "out, or take generator 'local'."
        )
    given = {theirs: getattr(config, ours, None) for ours, theirs in OPTIONS.items()}
    options = NOTHING | {name: value for name, value in given.items() if value is not None}
    if options["min_p"] and options["top_p"] < 1:
        raise ValueError(
            "min_p and top_p together cut off other tokens in vLLM, which takes min_p first, than in transformers. "
            "Give one of them, or take generator 'local'."
        )
    strings = [config.stop_strings] if isinstance(config.stop_strings, str) else list(config.stop_strings or ())
    return {
        **options,
        "temperature": float(config.temperature),
        "max_tokens": int(config.max_new_tokens) - done,
        "min_tokens": max(0, options["min_tokens"] - done),
        # The ends are those of the run, whatever the server reads in the model's generation_config.json.
        "ignore_eos": True,
        "stop_token_ids": list(config.eos_token_id or ()),
        "stop": strings,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "seed": seed,
    }
