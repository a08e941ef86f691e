"""Numbers that a run carries from rollout to rollout: the KL coefficient, and the moments of the scores seen so far.

Both are fed what all processes have together, so that they are the same everywhere, and both go into the checkpoint.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

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
