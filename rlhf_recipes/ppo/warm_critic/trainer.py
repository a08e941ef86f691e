"""A critic learns the returns of stored rollouts, on the states of a policy that stays as it is."""

import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, TrainerCallback

from rlhf_recipes.compat import CheckpointOfRoles
from rlhf_recipes.modeling.critics import CRITIC_FOLDER, build_critic
from rlhf_recipes.modeling.decoders import check_ids, check_same_vocabulary
from rlhf_recipes.modeling.logprobs import completion_logprobs, head_inputs, texts_of
from rlhf_recipes.modeling.tokenizers.padding import fit_model
from rlhf_recipes.ppo import functional as F
from rlhf_recipes.ppo.warm_critic.config import CriticConfig
from rlhf_recipes.ppo.warm_critic.rollouts import StoredRollout

logger = logging.getLogger(__name__)
TOKENS = ("prompt_ids", "prompt_mask", "completion_ids", "mask")
FAR = 0.5  # nats for each token: another policy, or another tokenizer


class CriticOnPolicy(nn.Module):
    """A critic, and the frozen policy whose states it may read.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): A causal language model; none of its weights is trained.
        kind (`str` or `nn.Module`): As for [`~rlhf_recipes.modeling.critics.build_critic`].
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
    """

    def __init__(self, policy: Any, kind: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.policy = policy.requires_grad_(False)  # before a critic may put something of its own there
        critic = build_critic(kind, policy)
        assert critic is not None, "a critic to train"
        fit_model(getattr(critic, "model", None), tokenizer)
        check_same_vocabulary({"critic": getattr(critic, "model", None)}, policy, tokenizer)
        self.critic: Any = critic
        self.config = policy.config

    def train(self, mode: bool = True) -> "CriticOnPolicy":
        super().train(mode)
        self.policy.eval()
        return self

    def forward(self, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, mask: Tensor) -> Tensor:
        """Values `(B, T)`, each read before its token is chosen; 0 where there is none."""
        texts = texts_of(prompt_ids, prompt_mask, completion_ids, mask)
        if self.critic.reads_policy:
            return texts.spread(self.critic(head_inputs(self.policy, texts)))
        return texts.spread(texts.pick(self.critic(**texts.inputs)))

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        own = getattr(self.critic, "model", None)
        if own is None:
            raise ValueError("gradient_checkpointing is for a critic that is a model of its own. Leave it out.")
        own.gradient_checkpointing_enable(**kwargs)
        own.enable_input_require_grads()

    def load_weights(self, folder: str | Path) -> None:
        self.critic.load_weights(Path(folder) / CRITIC_FOLDER)


class CriticTrainer(CheckpointOfRoles):
    """Least squares of values against returns: the value loss of PPO without its clip, as a mean over tokens.

    Args:
        model ([`CriticOnPolicy`]): What is trained.
        args ([`~rlhf_recipes.ppo.warm_critic.config.CriticConfig`]): The settings. The object is not changed.
        train_dataset, eval_dataset (`list[dict]`): Episodes, as of
            [`~rlhf_recipes.ppo.warm_critic.rollouts.StoredRollout`].
    """

    loss_is_scaled_for_ga = True  # by the tokens of the whole step
    model: Any

    def __init__(
        self,
        model: CriticOnPolicy,
        args: CriticConfig,
        train_dataset: Sequence[dict[str, Tensor]],
        eval_dataset: Sequence[dict[str, Tensor]],
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        args = copy.copy(args)
        if args.learning_rate is None:
            args.learning_rate = default_learning_rate(model.critic)
        episodes: dict[str, Any] = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        super().__init__(model=model, args=args, data_collator=collate, callbacks=callbacks, **episodes)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The batches of an optimizer step, and how many tokens all processes have in it."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, None
        count = torch.stack([batch["loss_mask"].sum() for batch in samples]).sum().to(device)
        return samples, self.accelerator.gather(count.reshape(1)).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Half the squared error of the values: the share of a batch in the mean over the tokens of its step."""
        values = model(**{name: inputs[name] for name in TOKENS})
        error, _ = F.value_loss(values, values, inputs["returns"], cliprange_value=None)
        loss = F.masked_sum(error, inputs["loss_mask"]) / num_items_in_batch.clamp(min=1)
        loss = loss * self.accelerator.num_processes  # launchers take the mean over processes
        return (loss, values) if return_outputs else loss

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Explained variance, loss (half the mean squared error) and the means of values and returns."""
        was_training = self.model.training
        self.model.eval()
        parts = []
        for batch in self.get_eval_dataloader(eval_dataset):
            batch = self._prepare_inputs(batch)
            with self.accelerator.autocast():
                values = self.model(**{name: batch[name] for name in TOKENS})
            said = torch.stack([values, batch["returns"], batch["loss_mask"].float()], dim=1)
            said = self.accelerator.gather_for_metrics(self.accelerator.pad_across_processes(said, dim=2))
            parts.append(said.transpose(0, 1).flatten(1))
        self.model.train(was_training)
        values, returns, mask = torch.cat(parts, dim=1)
        figures = {
            "explained_variance": F.explained_variance(values, returns, mask),
            "loss": 0.5 * F.masked_mean((values - returns) ** 2, mask),
            "mean_value": F.masked_mean(values, mask),
            "mean_return": F.masked_mean(returns, mask),
        }
        metrics = {f"{metric_key_prefix}_{name}": float(figure) for name, figure in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the critic into `critic/` of a folder, in the form that PPO's `critic: FOLDER` reads."""
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            self.accelerator.unwrap_model(self.model).critic.save_pretrained(folder / CRITIC_FOLDER)


def collate(episodes: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Episodes as tensors `(B, P)`, padded on the left, and `(B, T)`, padded on the right."""

    def padded(tensors: list[Tensor], side: str = "right") -> Tensor:
        return pad_sequence(tensors, batch_first=True, padding_side=side)

    prompts = [episode["prompt_ids"] for episode in episodes]
    batch = {"prompt_ids": padded(prompts, "left"), "prompt_mask": padded(list(map(torch.ones_like, prompts)), "left")}
    for name in ("completion_ids", "returns", "loss_mask"):
        batch[name] = padded([episode[name] for episode in episodes])
    return batch | {"mask": padded([torch.ones_like(episode["completion_ids"]) for episode in episodes])}


def default_learning_rate(critic: Any) -> float:
    """0.64 / width for a layer on the policy, 1e-4 for adapters, 1e-5 for a whole model.

    A step of Adam moves each weight of a layer by about the learning rate, and so a value by as many times that as the
    states are wide. At a width of 64 it is 1e-2, which benchmarks/warm_critic.py has tried.
    """
    if critic.reads_policy:
        return 0.64 / critic.weight.shape[1]
    own = getattr(critic, "model", None)
    return 1e-4 if own is None or isinstance(own, PeftModel) else 1e-5


def earlier_explained_variance(episodes: Sequence[dict[str, Tensor]]) -> float:
    """That of the critic of the run that stored the episodes, while it wrote them; 0 where it had none."""
    values, returns, mask = (torch.cat([episode[name] for episode in episodes])
                             for name in ("values", "returns", "loss_mask"))  # fmt: skip
    return float(F.explained_variance(values, returns, mask))


@torch.no_grad()
def distance(policy: Any, rollouts: Sequence[StoredRollout], tokenizer: Any, count: int = 32) -> float:
    """KL(who wrote the rollouts || the policy) in nats per token, estimated on some of their episodes.

    A warning says that it is large: values learned on these rollouts are then those of another policy.

    Raises:
        `ValueError`: if the policy has no embedding for a token of them.
    """
    drawn = [(rollout.temperature, episode) for rollout in rollouts for episode in rollout.episodes]
    drawn = drawn[:: -(-len(drawn) // count)]
    check_ids([[*e["prompt_ids"].tolist(), *e["completion_ids"].tolist()] for _, e in drawn], policy, tokenizer,
              "stored rollouts")  # fmt: skip
    policy.eval()
    log_ratio, tokens = 0.0, 0
    for temperature, episode in drawn:
        batch = {name: tensor.to(policy.device) for name, tensor in collate([episode]).items()}
        inputs: dict[str, Any] = {name: batch[name] for name in TOKENS}
        said = completion_logprobs(policy, **inputs, temperature=temperature)
        log_ratio += float((episode["logprobs"] - said.logprobs[0].cpu()).sum())
        tokens += len(episode["logprobs"])
    far = log_ratio / tokens
    if abs(far) > FAR:
        logger.warning(
            "The stored rollouts were written by a policy that is %.2g nats per token away from this one: their "
            "returns say little of it. Take the other end of that run (--take), or the model that wrote them.", far,
        )  # fmt: skip
    return far
