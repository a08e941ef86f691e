"""Which model plays which role in PPO: policy and critic in one module, and the reference beside them."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_recipes.modeling.adapters import active_adapter, checkpointing_with_adapters, copy_adapter, free_name
from rlhf_recipes.modeling.critics import CRITIC_FOLDER, ValueHead, load_into, without_prefix
from rlhf_recipes.modeling.generation import Written
from rlhf_recipes.modeling.logprobs import Texts, completion_logprobs, texts_of
from rlhf_recipes.modeling.saving import make_loadable, save_policy
from rlhf_recipes.modeling.trunk.split import split_of, stack_of
from rlhf_recipes.modeling.trunk.trunk import Trunk
from rlhf_recipes.modeling.zero import copy_whole, gathered, is_divided

REFERENCE = "reference"  # the name of an adapter that stands for it


class ActorCritic(nn.Module):
    """The policy and its critic: v_t is read at the position that predicts token t, before that token is chosen.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): a causal language model, dropout off.
        ref_model (`PreTrainedModel`, *optional*):
            The reference. Without one it is the policy as it now is: with its adapters off where these are fresh, with
            a frozen copy of them where they alone are trained, and a frozen copy of the whole otherwise.
        reference_is_base (`bool`):
            For measuring only: the reference is the base below trained adapters, or the policy itself without any.
        critic (`nn.Module`, *optional*):
            As from [`~rlhf_recipes.modeling.critics.build_critic`]. By default a [`ValueHead`] is made; `False` is for
            none, and then all values are 0.
        ref_adapter (`str`, *optional*): The policy's adapter that is the reference.
        logits_chunk_size (`int`, *optional*): Tokens whose logits may exist at a time; `None` for all.
        reuse_trunk (`bool`): Whether layers below all that is trained are run once for each token, for all roles and
            epochs; [`~rlhf_recipes.modeling.checks.trunk.check_trunk`] finds out whether they can be.
    """

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        ref_model: nn.Module | None = None,
        reference_is_base: bool = False,
        critic: nn.Module | None | bool = None,
        ref_adapter: str | None = None,
        logits_chunk_size: int | None = None,
        reuse_trunk: bool = False,
    ) -> None:
        super().__init__()
        self.policy: Any = policy
        adapted: Any = policy
        self.config = policy.config
        self.critic: Any = ValueHead(policy) if critic is None else (critic or None)
        self.ref_adapter = ref_adapter
        self.adapter: Any = policy.active_adapter if isinstance(policy, PeftModel) else None
        self.logits_chunk_size = logits_chunk_size
        if ref_adapter is not None and ref_adapter not in getattr(policy, "peft_config", {}):
            raise ValueError(f"The policy has no adapter {ref_adapter!r}, which ref_adapter_name names as reference.")
        if reference_is_base:
            ref_model = None if isinstance(policy, PeftModel) else policy
        elif ref_model is None and ref_adapter is None and not has_fresh_adapters(policy):
            # With adapters that have learned something, "adapters off" would be the model before that (trl#1340).
            if trains_lora_alone(policy):
                self.ref_adapter = name = free_name(adapted, REFERENCE)
                copy_adapter(adapted, adapted.active_adapter, name, trains=False, heads=True)
            else:
                ref_model = copy_whole(policy)
        if ref_model is not None:
            ref_model.requires_grad_(False).eval()
        self._outside = {"reference": ref_model}  # in a dict, so that it is neither trained, wrapped nor saved
        # What `modeling/checks/shortcuts.py` and `modeling/checks/randomness.py` find in the first batch.
        self.put_aside: dict[str, set[str]] = {"policy": set(), "reference": set()}
        self.always_in_eval: list[nn.Module] = []
        # What `modeling/checks/trunk.py` finds: the frozen lower layers of each role, and whether what was kept while
        # completions were written is as exact as reading them again.
        self.reuse_trunk, self.trunk_depth = reuse_trunk, 0
        self.trunks: dict[str, Trunk | None] = {"policy": None, "reference": None}
        self.as_written = False
        self.divide_again()

    def divide_again(self) -> bool:
        """Look for the layers below all that is trained; whether they are others than before."""
        split = split_of(self.policy)
        if not self.reuse_trunk or split.depth == self.trunk_depth:
            return False
        self.trunk_depth = split.depth
        self.trunks = {"policy": None, "reference": None}
        if split.depth:
            self.trunks["policy"] = Trunk(self.policy, split.layers, split.depth)
            beside = self.policy if self.ref_model is None else self.ref_model
            layers = stack_of(beside)
            if layers is not None and len(layers) == len(split.layers):
                self.trunks["reference"] = Trunk(beside, layers, split.depth)
        return True

    @property
    def ref_model(self) -> Any:
        """The model that stands for the reference, or `None` where the policy does, with other adapters or none."""
        return self._outside["reference"]

    def replace_reference(self, model: nn.Module) -> None:
        """Put what a launcher has made of the reference in its place."""
        self._outside["reference"] = model  # no property: nn.Module would register a module that is assigned

    @property
    def value_model(self) -> Any:
        """The critic as TRL's scripts read it: a model of its own, or the layer on the policy; `None` without one."""
        return getattr(self.critic, "model", self.critic)

    def train(self, mode: bool = True) -> "ActorCritic":
        """As `torch.nn.Module.train`, but for the modules that draw random numbers in training."""
        super().train(mode)
        for module in self.always_in_eval:
            module.training = False  # of itself alone: what is inside of it trains
        return self

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the policy computes activations again in the backward pass."""
        return self.policy.is_gradient_checkpointing

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        completion_ids: Tensor,
        mask: Tensor,
        temperature: float,
        entropy_grad: bool = False,
        critic_alone: bool = False,
        demonstrations: tuple[Tensor, Tensor] | None = None,
        states: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Log-probability, entropy and value for each token of the completions.

        Args:
            prompt_ids (`(B, P)`), prompt_mask (`(B, P)`): prompts, padded on the left.
            completion_ids (`(B, T)`), mask (`(B, T)`): completions, padded on the right.
            entropy_grad (`bool`): let gradients through the entropies.
            critic_alone (`bool`): let no gradient of the values into the policy.
            demonstrations (`tuple`, *optional*): token ids and mask of texts `(D, L)` to imitate, padded on the right.
            states (`(B, P + T, H)`, *optional*): what the trunk says of prompts and completions.

        Returns:
            `dict[str, Tensor]`: `logprobs`, `entropy`, `values`, each `(B, T)`, 0 where there is no token; and
            `demonstration_logprobs` `(D, L - 1)`, of the tokens after the first, where demonstrations were given.
        """
        said = completion_logprobs(
            self.policy,
            prompt_ids,
            prompt_mask,
            completion_ids,
            mask,
            temperature,
            entropy_grad=entropy_grad,
            below=self._below("policy", states),
            **self.shortcuts_of("policy"),
        )
        hidden = said.hidden.detach() if critic_alone else said.hidden
        values = self._values(said.texts, hidden, states)
        out = {"logprobs": said.logprobs, "entropy": said.entropy, "values": values}
        if demonstrations is not None:
            ids, texts_mask = demonstrations
            texts = (ids[:, :1], texts_mask[:, :1], ids[:, 1:], texts_mask[:, 1:])
            out["demonstration_logprobs"] = completion_logprobs(
                self.policy, *texts, 1.0, **self.shortcuts_of("policy")
            ).logprobs
        return out

    def _values(self, texts: Texts, hidden: Tensor, states: Tensor | None) -> Tensor:
        """Values `(B, T)`, from the hidden states `(N, H)` below the output layer or by the critic's own reading."""
        if self.critic is None:
            return hidden.new_zeros(texts.real.shape, dtype=torch.float32)
        if self.critic.reads_policy:
            return texts.spread(self.critic(hidden))
        below = self._below("policy", states)  # an adapter on the policy's base stands on its trunk
        with contextlib.nullcontext() if below is None else below(texts):
            return texts.spread(texts.pick(self.critic(**texts.inputs)))

    def _below(self, role: str, states: Tensor | None) -> Any:
        trunk = self.trunks[role]
        return None if states is None or trunk is None else trunk.below(states)

    @torch.no_grad()
    def read_trunk(self, tokens: Mapping[str, Tensor]) -> Tensor | None:
        """What the policy's trunk says at each column of prompts and completions `(B, P + T, H)`; `None` without."""
        trunk = self.trunks["policy"]
        return None if trunk is None else trunk.read(tokens, trim="trimming" not in self.put_aside["policy"])

    def shortcuts_of(self, role: str) -> dict[str, Any]:
        """Options of [`completion_logprobs`] for `"policy"` or `"reference"`, without those that were put aside."""
        aside = self.put_aside[role]
        return {
            "chunk": None if "chunks" in aside else self.logits_chunk_size,
            "keep": "kept logits" not in aside,
            "trim": "trimming" not in aside,
        }

    @torch.no_grad()
    def reference_logprobs(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        completion_ids: Tensor,
        mask: Tensor,
        temperature: float,
        states: Tensor | None = None,
    ) -> Tensor:
        """Log-probabilities under the reference, `(B, T)`; `states` are those of the policy's trunk."""
        tokens = (prompt_ids, prompt_mask, completion_ids, mask, temperature)
        role = "policy" if self.ref_model is None else "reference"
        options = self.shortcuts_of(role) | {"below": self._below("reference", states)}
        with self.as_reference() as model:
            return completion_logprobs(model, *tokens, **options).logprobs

    @torch.no_grad()
    def read(self, written: Written, temperature: float, keep_states: bool = False) -> dict[str, Tensor]:
        """What policy, critic and reference say of completions, read anew only where it was not kept while they were
        written.

        Returns:
            `dict[str, Tensor]`: `logprobs`, `values`, `ref_logprobs` `(B, T)`; and with `keep_states` `trunk`
            `(B, P + T, H)`, where there is a trunk.
        """
        tokens = {name: getattr(written, name) for name in ("prompt_ids", "prompt_mask", "completion_ids", "mask")}
        kept = self.as_written and self.trunks["policy"] is not None
        states = written.trunk if kept and written.trunk is not None else self.read_trunk(tokens)
        if self.as_written and written.head_inputs is not None:
            texts = texts_of(**tokens, trim="trimming" not in self.put_aside["policy"])
            values = self._values(texts, written.head_inputs[texts.real], states)
            said = {"logprobs": written.logprobs * tokens["mask"], "values": values}
        else:
            said = self(**tokens, temperature=temperature, states=states)
        if self.ref_model is self.policy:  # its own reference, where something is measured
            reference = said["logprobs"]
        else:
            reference = self.reference_logprobs(**tokens, temperature=temperature, states=states)
        trunk = {"trunk": states} if keep_states and states is not None else {}
        return {"logprobs": said["logprobs"], "values": said["values"], "ref_logprobs": reference} | trunk

    @contextlib.contextmanager
    def as_reference(self) -> Any:
        """The model that is the reference, within this context alone."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        with active_adapter(self.policy, self.ref_adapter) as model:
            yield model

    def parameters_of_policy(self) -> list[nn.Parameter]:
        """What the policy's loss trains: all of the policy's module but an adapter that the critic has there."""
        of_critic = {id(p) for p in self.critic.adapter_parameters()} if self._critic_adapter else set()
        return [parameter for parameter in self.policy.parameters() if id(parameter) not in of_critic]

    @property
    def _critic_adapter(self) -> str | None:
        return getattr(self.critic, "adapter", None)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        if self._critic_adapter:
            given = kwargs.get("gradient_checkpointing_kwargs")
            kwargs["gradient_checkpointing_kwargs"] = checkpointing_with_adapters(self.policy, given)
        for model in self._models():
            model.gradient_checkpointing_enable(**kwargs)
            model.enable_input_require_grads()  # else no gradient reaches adapters above a frozen embedding

    def gradient_checkpointing_disable(self) -> None:
        for model in self._models():
            model.gradient_checkpointing_disable()

    def _models(self) -> list[Any]:
        own = getattr(self.critic, "model", None)
        return [self.policy] if own is None else [self.policy, own]

    def save_pretrained(
        self, folder: str | Path, state_dict: dict[str, Tensor] | None = None, merge: bool = False
    ) -> None:
        """Save policy (or its adapters) in `folder`, for any Hugging Face code to load; the critic in `critic/`.

        Args:
            state_dict (`dict`, *optional*): The weights of this module, where they had to be gathered from processes.
            merge (`bool`): write one whole model with the adapters merged in.
        """
        make_loadable(self.policy)
        if state_dict is None:
            save_policy(self.policy, folder, merge)
        else:
            if merge and isinstance(self.policy, PeftModel):
                raise ValueError("Weights that lie on several processes cannot be merged. Save the adapters, and "
                                 "merge them after loading: PeftModel.merge_and_unload().")  # fmt: skip
            own_alone = {"selected_adapters": [self.adapter]} if self.adapter else {}
            self.policy.save_pretrained(str(folder), state_dict=without_prefix(state_dict, "policy."), **own_alone)
        if self.critic is not None:
            own = None if state_dict is None else without_prefix(state_dict, "critic.")
            if own is not None and state_dict is not None and self._critic_adapter:
                own |= without_prefix(state_dict, "policy.")
            self.critic.save_pretrained(Path(folder) / CRITIC_FOLDER, own)

    def load_weights(self, folder: str | Path) -> None:
        """Take over the weights of policy and critic that `save_pretrained` wrote; the reference stays as it is."""
        load_into(self.policy, Path(folder), not_its=[name for name in (self._critic_adapter,) if name])
        if self.critic is not None:
            self.critic.load_weights(Path(folder) / CRITIC_FOLDER)


def has_fresh_adapters(model: nn.Module) -> bool:
    """Whether the model has LoRA adapters that change nothing yet, so that "adapters off" is the model itself."""
    if not isinstance(model, PeftModel) or any(
        parameter.requires_grad and not any(mark in name for mark in ("lora_", "modules_to_save"))
        for name, parameter in model.named_parameters()
    ):  # biases or layer norms of the base that are trained too stay on when adapters are switched off
        return False
    names = [f".{name}" for name in model.active_adapters]
    outer = [
        parameter
        for name, parameter in model.named_parameters()
        if ("lora_B" in name or "lora_embedding_B" in name) and any(f"{mark}." in f"{name}." for mark in names)
    ]
    with gathered(outer):
        return bool(outer) and not any(parameter.any() for parameter in outer)


def trains_lora_alone(model: nn.Module) -> bool:
    """Whether all that a policy trains are the matrices of one LoRA adapter."""
    if not isinstance(model, PeftModel) or len(model.active_adapters) > 1 or is_divided(model):
        return False
    config: Any = model.active_peft_config
    if not isinstance(config, LoraConfig) or config.modules_to_save or config.trainable_token_indices:
        return False
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return config.bias == "none" and all("lora_" in name for name in trained)
