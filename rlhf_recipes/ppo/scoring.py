"""The rewards of one rollout: what they are given, when they begin, and how their values become scores."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object

from rlhf_recipes.data.chat import answered
from rlhf_recipes.modeling.generation import Written, pad_right, prompt_lists, token_lists, unpadded
from rlhf_recipes.ppo.metrics import Meter
from rlhf_recipes.ppo.rollout import Rollout
from rlhf_recipes.rewards.base import Parts, StartedRewards
from rlhf_recipes.rewards.weighted_sum import progress_of


class Scoring:
    """Scores the completions of this process for some rows of a split.

    `start` is called when the completions are written, so that rewards that wait on something outside have begun
    before policy, reference and critic read them; `finish` when all of these have.

    Args:
        trainer ([`PPOTrainer`]): Whose rewards and data these are.
        split (`str`): Which of its prompts.
        rows (`Sequence[int]`): Their rows.
        meter ([`Meter`]): Takes what rewards log, and their seconds.
        learn (`bool`): Whether these values move the running statistics; not while evaluating.
    """

    def __init__(self, trainer: Any, split: str, rows: Sequence[int], meter: Meter, learn: bool = True) -> None:
        self.trainer = trainer
        self.columns = trainer.prompts[split].dataset[list(rows)]
        self.prompts = self.columns.pop("prompt")
        self.meter = meter
        self.learn = learn
        self.progress = progress_of(trainer.state)
        self.extra: dict[str, list] = {}
        self.texts: list[str] = []
        self.rewards: StartedRewards | None = None

    def start(self, written: Written) -> None:
        """Begin the rewards that can begin."""

        def log_metric(name: str, value: float) -> None:
            self.meter.add({f"reward/{name}": value})

        ids = token_lists(written)
        self.texts = self.trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
        prompts, completions = answered(self.prompts, self.texts)
        from_trainer = {
            "trainer_state": self.trainer.state,
            "log_metric": log_metric,
            "log_extra": self.extra.__setitem__,
            "prompt_ids": prompt_lists(written),
        }
        self.rewards = self.trainer.reward.begin(prompts, completions, ids, **self.columns, **from_trainer)

    def finish(self, rollout: Rollout) -> tuple[Rollout, list[dict[str, Any]]]:
        """Add the score of each completion: the weighted rewards, less the penalty for a missing end.

        Returns:
            `tuple`: the rollout, and for each completion what a table shows of it.
        """
        assert self.rewards is not None, "start before finish"
        reward, settings = self.trainer.reward, self.trainer.settings
        ids = token_lists(rollout)
        parts = self.rewards.values(ref_logprobs=unpadded(rollout.ref_logprobs, rollout.mask))
        self.meter.add({f"time/reward/{name}": seconds for name, seconds in self.rewards.seconds.items()})
        shown = reward.per_row(parts)
        parts = self._normalized(parts)
        device, width = rollout.mask.device, rollout.mask.shape[1]
        scores = torch.tensor(reward.combine(parts, self.progress), device=device)
        if settings.missing_eos_penalty is not None:
            scores = scores - settings.missing_eos_penalty * (~rollout.finished)
        per_token = {
            "token_rewards": reward.combine_tokens(parts, ids, self.progress),
            "potentials": reward.combine_potentials(parts, ids, self.progress),
        }
        tensors = {k: pad_right(v, 0.0, width, device=device) for k, v in per_token.items() if v is not None}
        columns = [[math.nan if value is None else value for value in values] for values in shown.values()]
        if columns:  # there may be potentials alone
            tensors["reward_parts"] = torch.tensor(columns, device=device).T.contiguous()
        rollout = replace(rollout, scores=scores, **tensors)
        whole = scores if rollout.token_rewards is None else scores + rollout.token_rewards.sum(dim=1)
        table = zip(self.prompts, self.texts, whole.tolist(), *shown.values(), *self.extra.values(), strict=True)
        names = ["prompt", "completion", "score", *shown, *self.extra]
        return rollout, [dict(zip(names, row, strict=True)) for row in table]

    def _normalized(self, parts: Parts) -> Parts:
        """With `normalize_rewards`, each reward in units of its standard deviation so far, of all processes."""
        if not self.trainer.settings.normalize_rewards:
            return parts
        credit = self.trainer.credit
        if self.learn:
            everyone = gather_object([parts]) if self.trainer.sizes.world > 1 else [parts]
            credit.rewards.learn(everyone)
        return credit.rewards.normalized(parts)
