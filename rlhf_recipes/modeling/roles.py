"""Which model plays which role in PPO: policy and critic in one module, and the reference beside them."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_recipes.ppo.functional import token_logprobs

CRITIC_FOLDER = "critic"
CRITIC_FILE = "value_head.safetensors"


class ActorCritic(nn.Module):
    """The policy, and a critic that reads what the policy's language-model head reads.

    The critic is one linear layer on the last hidden states: v_t is read at the position that predicts token t, before
    that token is chosen. It starts at 0.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): a causal language model, dropout off.
        ref_model (`PreTrainedModel`, *optional*):
            The reference. Without one it is the policy with its adapters off where these are fresh, and a frozen copy
            of the policy as it now is otherwise.
        reference_is_base (`bool`):
            For measuring only: the reference is the base below trained adapters, or the policy itself without any.
    """

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        ref_model: nn.Module | None = None,
        reference_is_base: bool = False,
    ) -> None:
        super().__init__()
        self.policy: Any = policy
        self.config = policy.config
        head = policy.get_output_embeddings()
        self.value_head = nn.Linear(self.config.get_text_config().hidden_size, 1, device=head.weight.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        if reference_is_base:
            ref_model = None if isinstance(policy, PeftModel) else policy
        elif ref_model is None and not has_fresh_adapters(policy):
            # With adapters that have learned something, "adapters off" would be the model before that (trl#1340).
            ref_model = copy.deepcopy(policy)
        if ref_model is not None:
            ref_model.requires_grad_(False).eval()
        self._outside = {"reference": ref_model}  # in a dict, so that it is neither trained, wrapped nor saved

    @property
    def ref_model(self) -> Any:
        """The model that stands for the reference, or `None` where it is the policy with its adapters off."""
        return self._outside["reference"]

    def forward(
        self, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, mask: Tensor, temperature: float
    ) -> dict[str, Tensor]:
        """Log-probability, entropy and value for each token of the completions.

        Args:
            prompt_ids (`(B, P)`), prompt_mask (`(B, P)`): prompts, padded on the left.
            completion_ids (`(B, T)`), mask (`(B, T)`): completions, padded on the right.

        Returns:
            `dict[str, Tensor]`: `logprobs`, `entropy`, `values`, each `(B, T)`; padding holds numbers of no meaning.
        """
        logits, hidden = completion_logits(self.policy, prompt_ids, prompt_mask, completion_ids, mask)
        logprobs, entropy = token_logprobs(logits, completion_ids, temperature)
        values = self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1).float()
        return {"logprobs": logprobs, "entropy": entropy, "values": values}

    @torch.no_grad()
    def reference_logprobs(
        self, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, mask: Tensor, temperature: float
    ) -> Tensor:
        """Log-probabilities under the reference, `(B, T)`."""
        model = self.policy if self.ref_model is None else self.ref_model
        off: Any = contextlib.nullcontext() if self.ref_model is not None else self.policy.disable_adapter()
        with off:
            logits, _ = completion_logits(model, prompt_ids, prompt_mask, completion_ids, mask)
        return token_logprobs(logits, completion_ids, temperature)[0]

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        self.policy.gradient_checkpointing_enable(**kwargs)
        self.policy.enable_input_require_grads()  # else no gradient reaches adapters above a frozen embedding

    def gradient_checkpointing_disable(self) -> None:
        self.policy.gradient_checkpointing_disable()

    def save_pretrained(self, folder: str | Path) -> None:
        """Save policy (or its adapters) in `folder`, for any Hugging Face code to load; the critic in `critic/`."""
        self.policy.save_pretrained(str(folder))
        (Path(folder) / CRITIC_FOLDER).mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.value_head.state_dict().items()}
        save_file(weights, Path(folder) / CRITIC_FOLDER / CRITIC_FILE)

    def load_weights(self, folder: str | Path) -> None:
        """Take over the weights of policy and critic that `save_pretrained` wrote; the reference stays as it is."""
        folder = Path(folder)
        if isinstance(self.policy, PeftModel):
            set_peft_model_state_dict(self.policy, load_file(folder / "adapter_model.safetensors"))
        else:
            saved = type(self.policy).from_pretrained(folder, dtype=self.policy.dtype)
            self.policy.load_state_dict(saved.state_dict())
        self.value_head.load_state_dict(load_file(folder / CRITIC_FOLDER / CRITIC_FILE))


def completion_logits(
    model: Any, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The logits `(B, T, V)` that each completion token was drawn from, and the hidden states `(B, T, H)` below them.

    Logits of the prompt are never computed.
    """
    attention_mask = torch.cat([prompt_mask, mask], dim=1)
    hidden: list[Tensor] = []

    def read_input(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # The states arrive as a slice of longer ones. On a CPU the product with the vocabulary is 2 times (float32) to
        # 35 times (bfloat16) slower on a slice than on its copy.
        hidden.append(args[0].contiguous())
        return (hidden[0],)

    hook = model.get_output_embeddings().register_forward_pre_hook(read_input)
    try:
        logits = model(
            input_ids=torch.cat([prompt_ids, completion_ids], dim=1),
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0),  # padding on the left must not shift a text
            logits_to_keep=completion_ids.shape[1] + 1,
            use_cache=False,
        ).logits
    finally:
        hook.remove()
    return logits[:, :-1], hidden[0][:, :-1]  # the last position predicts what would follow the completion


def has_fresh_adapters(model: nn.Module) -> bool:
    """Whether the model has LoRA adapters that change nothing yet, so that "adapters off" is the model itself."""
    if not isinstance(model, PeftModel):
        return False
    outer = [
        parameter for name, parameter in model.named_parameters() if "lora_B" in name or "lora_embedding_B" in name
    ]
    return bool(outer) and not any(parameter.any() for parameter in outer)
