"""Rollouts: what a policy wrote, and what policy, reference and critic said of every token."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor

from rlhf_recipes.modeling.generation import Written, stable_key
from rlhf_recipes.modeling.roles import ActorCritic

TOKENS = ("prompt_ids", "prompt_mask", "completion_ids", "mask")


@dataclass(frozen=True)
class Rollout:
    """Episodes as tensors. `rollout[rows]` is a mini-batch of them.

    ```
    completion   a    b    c   EOS   .    .
    mask         1    1    1    1    0    0        1 = a real token that counts
    logprobs     l0   l1   l2   l3                 l_t scores token t given all before it
    values       v0   v1   v2   v3                 v_t is read before token t is chosen
    rewards     -k0  -k1  -k2  -k3+score           the score lands on the last 1 of the mask
    ```
    """

    prompt_ids: Tensor  # (B, P)  padded on the left
    prompt_mask: Tensor  # (B, P)
    completion_ids: Tensor  # (B, T)  padded on the right, end-of-sequence token kept
    mask: Tensor  # (B, T)
    logprobs: Tensor  # (B, T)  log pi_old(a_t | s_t)
    ref_logprobs: Tensor  # (B, T)  log pi_ref(a_t | s_t)
    values: Tensor  # (B, T)  V(s_t)
    finished: Tensor  # (B,)  True where the completion ended by itself
    scores: Tensor | None = None  # (B,)  what is paid with the last token
    token_rewards: Tensor | None = None  # (B, T)  what is paid with each token
    potentials: Tensor | None = None  # (B, T)  Phi(s_t), for shaping
    reward_parts: Tensor | None = None  # (B, K)  each reward before its weight, NaN where it does not apply
    sampled_logprobs: Tensor | None = None  # (B, T)  of who drew the tokens, where that was not quite the policy
    weights: Tensor | None = None  # (B, T)  pi_old / who drew it, truncated
    trunk: Tensor | None = None  # (B, P + T, H)  what the frozen lower layers said
    loss_mask: Tensor | None = None  # (B, T)  mask without the completions that the losses leave out
    rewards: Tensor | None = None  # (B, T)  all that is paid with each token, the KL penalty included
    advantages: Tensor | None = None  # (B, T)
    returns: Tensor | None = None  # (B, T)

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: tensor[rows] for name, tensor in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def map(self, function: Any) -> "Rollout":
        """A rollout with `function(name, tensor)` in place of each tensor."""
        return replace(self, **{name: function(name, tensor) for name, tensor in self.tensors().items()})


def read(
    actor_critic: ActorCritic, written: Written, temperature: float, chunk: int = 64, keep_states: bool = False
) -> Rollout:
    """What policy, reference and critic say of completions, `chunk` rows at a time.

    Args:
        keep_states (`bool`): Keep what the frozen lower layers say, for the update.
    """
    parts = [actor_critic.read(written[start : start + chunk], temperature, keep_states)
             for start in range(0, len(written.mask), chunk)]  # fmt: skip
    said = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    tokens = {name: getattr(written, name) for name in (*TOKENS, "finished")}
    return Rollout(**tokens, **said, sampled_logprobs=None if actor_critic.as_written else written.logprobs)


def gathered(rollout: Rollout, pad_token_id: int, world: int) -> Rollout:
    """The rollouts of all `world` processes as one, so that everything after it is over all of them."""
    if world == 1:
        return rollout
    widths = gather(torch.tensor([rollout.prompt_ids.shape[1]], device=rollout.mask.device))
    missing = int(widths.max()) - rollout.prompt_ids.shape[1]

    def joined(name: str, tensor: Tensor) -> Tensor:
        if name in ("prompt_ids", "prompt_mask"):
            fill = pad_token_id if name == "prompt_ids" else 0
            tensor = torch.nn.functional.pad(tensor, (missing, 0), value=fill)
        elif name == "trunk":
            tensor = torch.nn.functional.pad(tensor, (0, 0, missing, 0))
        return gather(tensor.contiguous())

    return rollout.map(joined)


def permutation(count: int, *key: Any) -> Tensor:
    """The numbers below `count` in an order that depends on `key` alone."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(stable_key(*key)))
