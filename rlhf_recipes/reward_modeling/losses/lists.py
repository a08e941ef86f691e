"""Losses over a list of completions: rankings, the best of many, the best and the worst."""

import math
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor

from rlhf_recipes.reward_modeling.losses.base import (
    Batch,
    Columns,
    Item,
    Objective,
    Targets,
    check_positive,
    with_prompts,
)
from rlhf_recipes.reward_modeling.losses.maths import log_sum_exp, real_lists, same_shape


@dataclass
class Lists(Objective):
    """What losses of lists share: columns `completions`, and `ranks` or `best` and `worst`."""

    fixes_level = False

    def texts(self, rows: Dataset) -> list[list[Item]]:
        return with_prompts(rows, rows["completions"])

    def targets(self, rows: Dataset) -> Columns:
        names = ("ranks",) if "ranks" in rows.column_names else ("best", "worst")
        sizes = {"size": [float(len(completions)) for completions in rows["completions"]]}
        return {**{name: list(rows[name]) for name in names}, **sizes}

    def known(self, targets: Targets) -> Tensor:
        return targets["size"] > 1

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """How often the best is on top."""
        scores, mask = batch.lists()
        top = scores.masked_fill(~mask, -torch.inf).argmax(dim=1)
        return (top == self.best(batch.targets)).sum(), torch.tensor(len(top), device=top.device)

    def best(self, targets: Targets) -> Tensor:
        """The place of the best in each list, `(R,)`."""
        if "best" in targets:
            return targets["best"].long()
        return targets["ranks"].nan_to_num(torch.inf).argmin(dim=1)


def plackett_luce(
    scores: Tensor, ranks: Tensor, mask: Tensor | None = None, top: int | Tensor | None = None
) -> Tensor:
    """Negative log-likelihood of a ranking: `sum_i [log sum_{j not better than i} exp(s_j) - s_i]`.

    The best is chosen from all, the next from those left, and so on (Luce 1959, Plackett 1975; as a loss ListMLE, Xia
    et al. 2008). Two completions without a tie are Bradley-Terry. Equal scores of K completions give log K!.

    Completions of equal rank count as put in some order that is not known, by Efron's approximation (1977) of Cox's
    regression, where the same likelihood arises: of g tied ones l / g of each are taken out before the (l + 1)-th
    choice, which gives the mean likelihood of their orders exactly where their scores are equal. It pulls tied scores
    together, and at best costs log g! for a tie. Where equal ranks mean "not asked", use `top` or `mask`.

    Args:
        scores (`(B, K)`): a list of one completion gives 0.
        ranks (`(B, K)`): lower is better, equal is a tie; only their order matters.
        mask (`(B, K)`, *optional*): 1 for a completion, 0 for padding.
        top (`int` or `(B,)`, *optional*): only the best so many were put in order; the others are known to be worse,
            in no order (all of one larger rank). A tie across the boundary counts whole.

    Returns:
        `Tensor`: `(B,)`, 0 or more. A sum over the choices made, so that long lists weigh more.
    """
    scores, real = real_lists(scores, mask)
    same_shape(scores=scores, ranks=ranks)
    of_i, of_j = ranks[:, :, None], ranks[:, None, :]
    itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    both = real[:, :, None] & real[:, None, :]  # (B, K, K)
    left = (both & (of_j >= of_i)) | itself
    tied = (both & (of_j == of_i)) | itself
    taken_before = tied.tril(-1).sum(dim=2).to(scores.dtype)
    log_left = torch.log1p(-taken_before / tied.sum(dim=2))  # of each tied one, at the choice of i
    differences = scores[:, None, :] - scores[:, :, None]  # s_j - s_i
    differences = differences + torch.where(tied, log_left[:, :, None], 0.0)
    losses = torch.where(left, differences, -math.inf).logsumexp(dim=2)  # (B, K)
    if top is not None:
        better = (both & (of_j < of_i)).sum(dim=2)
        real = real & (better < torch.as_tensor(top, device=scores.device).reshape(-1, 1))
    return torch.where(real, losses, 0.0).sum(dim=1)


@dataclass
class PlackettLuce(Lists):
    """[`plackett_luce`].

    Args:
        top (`int`, *optional*): Only the best so many were put in order.
    """

    reads = ("rankings",)
    top: int | None = None

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise ValueError(f"top is {self.top}; give how many of the best are in order, 1 or more, or leave it out.")

    def losses(self, batch: Batch) -> Tensor:
        scores, mask = batch.lists()
        return plackett_luce(scores, batch.targets["ranks"].nan_to_num(torch.inf), mask, self.top)


def info_nce(scores: Tensor, positive: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """One best of many, `-log softmax(scores / temperature)[positive]` (InfoNCE, arXiv 1807.03748, eq. 4).

    The first choice of [`plackett_luce`]: nothing is said of the others among themselves. Equal scores give log K; two
    completions are Bradley-Terry.

    Args:
        scores, mask (`(B, K)`): as in [`plackett_luce`].
        positive (`(B,)` integers): the column of the best; it must be a real one.
        temperature: positive.

    Returns:
        `Tensor`: `(B,)`, 0 or more.
    """
    scores, real = real_lists(scores, mask)
    differences = (scores - scores.gather(1, positive[:, None])) / temperature
    return log_sum_exp(differences, real) * (real.sum(dim=1) > 1)


@dataclass
class InfoNCE(Lists):
    """[`info_nce`]: the best of each list against the others.

    Args:
        temperature (`float`): Lower looks harder at the strongest of the others.
    """

    reads = ("rankings", "best_worst")
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)

    def losses(self, batch: Batch) -> Tensor:
        scores, mask = batch.lists()
        best = self.best(batch.targets)
        of_row = info_nce(scores, best, mask, self.temperature)
        if "ranks" not in batch.targets:
            return of_row
        # Of several that share the first rank each is the best as often: the mean of their losses.
        ranks = batch.targets["ranks"].nan_to_num(torch.inf)
        first = mask & (ranks == ranks.amin(dim=1, keepdim=True))
        mean = (scores * first).sum(dim=1) / first.sum(dim=1)
        return of_row + (scores.gather(1, best[:, None])[:, 0] - mean) / self.temperature


def best_worst(scores: Tensor, best: Tensor, worst: Tensor, mask: Tensor | None = None) -> Tensor:
    """The best and the worst of a list, `-log P(best = i, worst = j)`, by maxdiff (Marley and Louviere 2005).

    `P = exp(s_i - s_j) / sum over all k != l of exp(s_k - s_l)`: both are seen at once, as the pair that is furthest
    apart. Of two completions it is `sigma(2 d)`: half the scale of Bradley-Terry. Equal scores of K completions give
    log K (K - 1).

    Args:
        scores, mask (`(B, K)`): as in [`plackett_luce`].
        best, worst (`(B,)` integers): columns of real completions. They must differ, which is not checked here: a row
            where they do not has a loss that means nothing.

    Returns:
        `Tensor`: `(B,)`, 0 or more.
    """
    scores, real = real_lists(scores, mask)
    over_best, over_worst = (scores - scores.gather(1, column[:, None]) for column in (best, worst))
    itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    pairs = real[:, :, None] & real[:, None, :] & ~itself
    differences = over_best[:, :, None] - over_worst[:, None, :]
    return log_sum_exp(differences.flatten(1), pairs.flatten(1)) * (real.sum(dim=1) > 1)


@dataclass
class BestWorst(Lists):
    """[`best_worst`]."""

    reads = ("best_worst",)

    def losses(self, batch: Batch) -> Tensor:
        scores, mask = batch.lists()
        return best_worst(scores, batch.targets["best"].long(), batch.targets["worst"].long(), mask)
