"""Numbers that a run carries from rollout to rollout: the KL coefficient, and the moments of the scores seen so far.

Both are fed what all processes have together, so that they are the same everywhere, and both go into the checkpoint.
Beside them a KL estimate is watched that is negative by more than chance, which changes nothing.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

MAX_KL_ERROR = 0.2  # Ziegler et al. clip the relative error to this, so that one odd rollout moves the value little


class KLController:
    """The KL coefficient: fixed, or steered towards a target (Ziegler et al., arXiv 1909.08593, section 2.2).

    `error = clip(kl / target - 1, -0.2, 0.2)` and `value *= 1 + error * episodes / horizon`.

    Args:
        kl_coef (`float`): the coefficient, or where it starts.
        target (`float`, *optional*): the KL to be held, in nats for each completion; positive. `None` holds `value`.
        horizon (`float`, *optional*, defaults to 10000): episodes. With an error of 0.2 throughout, this many change
            the value by about a fifth; more make it slower.

    Raises:
        `ValueError`: if target or horizon is not positive.
    """

    def __init__(self, kl_coef: float, target: float | None = None, horizon: float = 10000) -> None:
        for name, given in (("target", target), ("horizon", horizon)):
            if given is not None and not given > 0:
                raise ValueError(f"The {name} of the KL controller is {given}, but must be greater than 0.")
        self.value = kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, episodes: int) -> None:
        """Take in the mean KL of one rollout (nats for each completion) and its number of completions."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1.0, -MAX_KL_ERROR), MAX_KL_ERROR)
        self.value *= 1.0 + error * episodes / self.horizon

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint. A fixed coefficient stays what the arguments say."""
        if self.target is not None:
            self.value = state["value"]


class RunningMoments:
    """Mean and standard deviation of all scores so far, batch after batch, in float64.

    Batches are merged by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979), eq. 2.1: no sum of squares is kept, so that a mean far from 0 costs no precision.

    Attributes:
        count (`int`): scores seen.
        mean (`float`): their mean; 0.0 before the first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # sum of squared distances from the mean

    def update(self, scores: Sequence[float] | Tensor) -> None:
        """Take in a batch of scores, of any shape. An empty one changes nothing."""
        batch = torch.as_tensor(scores, dtype=torch.float64).detach().flatten().cpu()
        if not len(batch):
            return
        added, mean = len(batch), float(batch.mean())
        total, delta = self.count + added, mean - self.mean
        self._squares += float(((batch - mean) ** 2).sum()) + delta**2 * self.count * added / total
        self.mean += delta * added / total
        self.count = total

    @property
    def std(self) -> float:
        """Unbiased standard deviation, or 1.0 where there is none to divide by: before two scores, or if all agree."""
        if self.count < 2:
            return 1.0
        std = math.sqrt(self._squares / (self.count - 1))
        # Equal scores may leave the rounding of their mean behind, and that is no spread.
        return std if std > 1e-12 * abs(self.mean) else 1.0

    def normalized(self, scores: Sequence[float] | Tensor, use_norm: bool) -> Tensor:
        """`(scores - mean) / std`, or `scores / std` without `use_norm`. Scores are not taken in; call `update` first.

        Returns:
            `Tensor`: of the scores' shape and, for a tensor of floats, of its dtype.
        """
        scores = torch.as_tensor(scores)
        # In float64: with a mean far from 0 a float32 score would lose its digits in the difference.
        wide = scores.double()
        wide = (wide - self.mean) / self.std if use_norm else wide / self.std
        return wide.to(scores.dtype if scores.is_floating_point() else torch.get_default_dtype())

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self._squares = int(state["count"]), float(state["mean"]), float(state["squares"])


class RewardMoments:
    """The moments of each reward so far, by name; those that pay per token are left alone."""

    def __init__(self) -> None:
        self.of: dict[str, RunningMoments] = {}

    def learn(self, parts_of_processes: Sequence[Mapping[str, Sequence[Any]]]) -> None:
        """Take in the rewards of a rollout, of all processes."""
        for name in parts_of_processes[0]:
            values = [value for parts in parts_of_processes for value in parts[name] if value is not None]
            if values and not isinstance(values[0], list):
                self.of.setdefault(name, RunningMoments()).update(values)

    def std(self, name: str) -> float:
        """The standard deviation of a reward so far; 1 where there is none."""
        return self.of[name].std if name in self.of else 1.0

    def mean(self, name: str) -> float:
        """The mean of a reward so far; 0 where there is none."""
        return self.of[name].mean if name in self.of else 0.0

    def normalized(self, parts: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Each reward less its mean so far, over its standard deviation so far."""
        return {
            name: [
                value if value is None or name not in self.of else (value - self.mean(name)) / self.std(name)
                for value in values
            ]
            for name, values in parts.items()
        }

    def state_dict(self) -> dict[str, dict[str, float]]:
        return {name: moments.state_dict() for name, moments in self.of.items()}

    def load_state_dict(self, state: Mapping[str, dict[str, float]]) -> None:
        self.of = {name: RunningMoments() for name in state}
        for name, moments in state.items():
            self.of[name].load_state_dict(moments)


RECENT_EPISODES = 256  # in which a negative KL is looked for


class NegativeKL:
    """Says what a KL means that is negative by more than chance, once."""

    def __init__(self) -> None:
        self.recent = torch.zeros(0, dtype=torch.float64)
        self.told = False

    def look(self, log_ratio: Tensor, mask: Tensor) -> None:
        """Take in a rollout: log pi - log pi_ref of its tokens, `(B, T)`; other estimators are never negative."""
        per_episode = torch.where(mask.bool(), log_ratio, 0.0).sum(dim=1).double().cpu()
        self.recent = torch.cat([self.recent, per_episode])[-max(RECENT_EPISODES, len(mask)) :]
        count = len(self.recent)
        if self.told or count < 4:
            return
        mean, error = float(self.recent.mean()), float(self.recent.std()) / math.sqrt(count)
        # Student's t with count - 1 degrees of freedom is further down once in a million (the first terms of its
        # expansion around the normal quantile 4.75): this is asked after every rollout, and chance must never say yes.
        bound = 4.75 + 28 / (count - 1) + 144 / (count - 1) ** 2
        if mean < -bound * error and mean < -0.01:
            self.told = True
            logger.warning(
                "The KL to the reference is estimated as %.3g nats, negative by more than chance (standard error "
                "%.2g, last %d completions). A KL is never negative; its estimate log pi - log pi_ref is, where "
                "completions do not come from pi: sampling options that change the distribution (top_k, top_p, "
                "min_new_tokens, penalties), a Generator with other weights or another temperature, or a model that "
                "computes other log-probabilities in training than in sampling. The penalty then rewards such "
                "completions. This is said once.",
                *(mean, error, count),
            )
