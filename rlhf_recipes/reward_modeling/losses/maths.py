"""Losses of reward models, one for each kind of human feedback: pure functions of scores. Nothing but torch.

B rows; lists of at most K completions, solutions of at most S steps, O objectives. What holds for all of them:

- A higher score is a better text. `mask` is 1 where there is something and 0 on padding, which may hold anything, NaN
  included; real items need not come first. Without a mask all are real.
- Numbers are made float32 first (float64 stays), so that scores may be bfloat16. Differences are taken before
  exponentials: losses and gradients are finite for scores of any size that float32 can square.
- `reduction="mean"` is the weighted mean over all that count, 0 (with gradient 0) where nothing does; `"none"` gives
  each row's loss times its weight, 0 where it does not count. A list of one completion compares nothing: it does not
  count. A target that is NaN is a missing one, which does not count either. A score that is NaN is not hidden.
- Shapes that do not fit are a `ValueError`: `(B,)` against `(B, 1)` would otherwise be B x B differences.

Losses that compare (pairs, lists, best and worst) do not change if a number is added to all scores of a comparison,
unless they are centered; those of ratings, levels, labels and steps fix where 0 is. `docs/reward_losses.md` says
which loss fits when.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Reduction = Literal["mean", "none"]
Kind = Literal["mse", "mae", "huber", "bce"]
KINDS = get_args(Kind)

# 2.3 - 1.8 in float32 is a little below 0.5: a gap that equals `min_gap` on paper must count.
TOLERANCE = 1e-5


# --- Pairs ---------------------------------------------------------------------------------------


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    margin: float | Tensor | None = None,
    target: float | Tensor = 1.0,
    label_smoothing: float = 0.0,
    center: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """`-[p log sigma(d - m) + (1 - p) log sigma(m - d)] + center * (r_c + r_r)²`, with `d = r_c - r_r`.

    Bradley and Terry 1952; the margin m is that of Llama 2 (arXiv 2307.09288, eq. 2), the centering term that of arXiv
    2312.09244, eq. 2. With target 1 and no smoothing this is the loss of TRL's `RewardTrainer`, `center` being its
    `center_rewards_coefficient`. Without a margin it is least at `d = log(p / (1 - p))`. Equal scores give log 2
    (m = 0), whatever p, and a gradient towards the side that p favours.

    Columns: `chosen, rejected`, with `margin`; `chosen_votes, rejected_votes` make the target.

    Args:
        chosen, rejected (`(B,)`): scores.
        margin (`float` or `(B,)`, *optional*): by how much the chosen text should win, in units of the score.
        target (`float` or `(B,)`): p, the share of votes for the chosen text, in [0, 1]; NaN where nobody voted.
        label_smoothing: the share e of labels that are wrong by chance, in [0, 0.5]: p becomes
            `(1 - e) * p + e * (1 - p)` (conservative DPO, Mitchell 2023).
        center: weight of the term that keeps scores near 0; 0 or more.

    Returns:
        `Tensor`: 0 or more; a scalar, or `(B,)`.

    Raises:
        `ValueError`: if target, label_smoothing or center is out of range.
    """
    chosen, rejected = _numbers(chosen=chosen, rejected=rejected)
    if not 0.0 <= label_smoothing <= 0.5 or center < 0.0:
        raise ValueError(
            f"label_smoothing is {label_smoothing} and center {center}; give 0 to 0.5 (half of all labels wrong), and "
            "0 or more."
        )
    if not isinstance(target, Tensor) and not 0.0 <= target <= 1.0:
        raise ValueError(f"target is {target}; give the share of votes for the chosen text, between 0 and 1.")
    p = _per_row(target, chosen, "target")
    known = ~p.isnan()
    p = torch.where(known, p, 0.5)
    p = (1.0 - label_smoothing) * p + label_smoothing * (1.0 - p)
    difference = chosen - rejected
    if margin is not None:
        difference = difference - _per_row(margin, chosen, "margin")
    losses = _binary(difference, p)
    if center:
        losses = losses + center * (chosen + rejected) ** 2
    return _reduce(losses, reduction, known)


def hinge(chosen: Tensor, rejected: Tensor, margin: float | Tensor = 1.0, reduction: Reduction = "mean") -> Tensor:
    """`max(0, m - (r_c - r_r))`: nothing to gain once the chosen text wins by the margin (Joachims 2002, ranking SVM).

    Equal scores give m; exactly at the margin the gradient is 0. With m = 0 equal scores are perfect, and so is a
    model that says the same of every text: keep m above 0.

    Columns: `chosen, rejected`, with `margin`.

    Args:
        chosen, rejected (`(B,)`): scores.
        margin (`float` or `(B,)`): in units of the score.

    Returns:
        `Tensor`: 0 or more; a scalar, or `(B,)`.
    """
    chosen, rejected = _numbers(chosen=chosen, rejected=rejected)
    return _reduce(F.relu(_per_row(margin, chosen, "margin") - (chosen - rejected)), reduction)


def pairs_in_batch(
    scores: Tensor,
    ratings: Tensor,
    min_gap: float = 0.5,
    scale: float | None = None,
    groups: Tensor | None = None,
    texts_alike: bool = False,
) -> Tensor:
    """Bradley-Terry on all pairs of a batch of rated texts at once: each text is encoded once, not once a pair.

    `mean over pairs with |y_i - y_j| >= min_gap of -[p log sigma(d) + (1 - p) log sigma(-d)]`, `d = s_i - s_j`, after
    InstructGPT, which takes all pairs of one prompt as one batch element (arXiv 2203.02155, section 3.5). p is 1 for
    the higher rating; with `scale` it is `sigma((y_i - y_j) / scale)`, so that a small gap says little. Equal ratings
    are no pair, except with `scale` and `min_gap=0`: there their target is 1/2. A batch without a pair gives 0.

    The texts of a batch are in many pairs, those with extreme ratings in most. With `texts_alike` the loss is the mean
    over texts of the mean over a text's pairs, that is, a pair weighs `1 / n_i + 1 / n_j`.

    Columns: `completion, score`; with `prompt`, give its number as group.

    Args:
        scores, ratings (`(B,)`): a rating that is NaN is missing.
        min_gap: least difference of two ratings, 0 or more.
        scale (`float`, *optional*): positive; the difference at which the target is 0.73.
        groups (`(B,)`, *optional*): only texts of the same group are compared.

    Returns:
        `Tensor`: a scalar, 0 or more.

    Raises:
        `ValueError`: if min_gap is negative or scale is not positive.
    """
    if min_gap < 0.0 or (scale is not None and scale <= 0.0):
        raise ValueError(f"min_gap is {min_gap} and scale {scale}; give 0 or more, and more than 0 or None.")
    scores, ratings = _numbers(scores=scores, ratings=ratings)
    gap = ratings[:, None] - ratings[None, :]  # (B, B)
    asked = gap.abs() >= max(min_gap - TOLERANCE, TOLERANCE if scale is None else 0.0)
    if groups is not None:
        _same_shape(scores=scores, groups=groups)
        asked = asked & (groups[:, None] == groups[None, :])
    asked = asked & ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    target = torch.where(asked, gap > 0 if scale is None else torch.sigmoid(gap / scale), 0.5).to(scores.dtype)
    losses = _binary(scores[:, None] - scores[None, :], target)
    weights = asked.triu().to(scores.dtype)  # a pair once; its loss is the same in both orders
    if texts_alike:
        one_over = 1.0 / asked.sum(dim=1).clamp(min=1).to(scores.dtype)
        weights = weights * (one_over[:, None] + one_over[None, :])
    return _reduce(losses, "mean", weights)


# --- Ratings -------------------------------------------------------------------------------------


def mse(scores: Tensor, targets: Tensor, weights: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    """`w * (s - y)²`: the score becomes the mean rating, on the rating's own scale.

    The weight of a mean of n votes is n, or one over its variance (weighted least squares, Aitken 1935).

    Columns: `completion, score`; `votes` make the weights.

    Args:
        scores, targets (any shape, the same): a target that is NaN is missing. Scale ratings to a few units around 0:
            the gradient grows with the distance.
        weights (same shape, *optional*): 0 or more.

    Returns:
        `Tensor`: 0 or more; a scalar, or the shape of the scores.
    """
    return _regression("mse", scores, targets, weights, reduction)


def mae(scores: Tensor, targets: Tensor, weights: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    """`w * |s - y|`: the score becomes the median rating, and one odd rating pulls no harder than another.

    The gradient is the sign of the distance, and 0 where there is none. Columns, shapes and weights as in [`mse`].
    """
    return _regression("mae", scores, targets, weights, reduction)


def huber(
    scores: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    delta: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """`w * d² / 2` up to a distance `|d| <= delta`, `w * delta * (|d| - delta / 2)` beyond it (Huber 1964).

    The gradient is at most `delta`. Columns, shapes and weights as in [`mse`].

    Args:
        delta: positive, in units of the rating.

    Raises:
        `ValueError`: if delta is not positive.
    """
    return _regression("huber", scores, targets, weights, reduction, delta)


# --- Levels: stars, grades, Likert scales ---------------------------------------------------------


class CumulativeLink(nn.Module):
    """Proportional odds (McCullagh 1980): `P(y <= k) = sigma(theta_k - score)`, for levels 0 to K - 1 in their order.

    The thresholds are learned with the model. They stay in order, since each is the one before plus a softplus:
    `theta_0 = a_0`, `theta_k = theta_{k-1} + softplus(a_k)`. They begin where a score of 0 gives each level 1 / K.
    Distances between levels are learned, not assumed equal as in [`mse`]. Give `parameters()` to the optimizer, and
    save them with the model.

    A level between others has `P = sigma(theta_k - s) * sigma(s - theta_{k-1}) * sigma(a_k)` exactly, so that its
    logarithm is finite for any score and any thresholds.

    Columns: `completion, score` with ratings on K levels; `votes` make histograms.

    Args:
        num_levels (`int`): K, 2 or more. With 2 this is binary cross-entropy with a free intercept.

    Raises:
        `ValueError`: if there are fewer than 2 levels.
    """

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(f"num_levels is {num_levels}; levels can be told apart from 2 on.")
        self.num_levels = num_levels
        start = torch.logit(torch.arange(1, num_levels, dtype=torch.float64) / num_levels)
        raw = torch.cat([start[:1], torch.log(torch.expm1(start.diff()))])
        self.raw = nn.Parameter(raw.float())  # (K - 1,): a_0 to a_{K-2}

    def thresholds(self) -> Tensor:
        """theta, `(K - 1,)`, rising."""
        raw = _float(self.raw)
        return torch.cat([raw[:1], F.softplus(raw[1:])]).cumsum(0)

    def log_probabilities(self, scores: Tensor) -> Tensor:
        """Log-probability of each level: `(B,)` scores give `(B, K)`."""
        if scores.ndim != 1:
            raise ValueError(f"scores has shape {tuple(scores.shape)}; give one score for each text, (B,).")
        distance = self.thresholds() - _float(scores)[:, None]  # (B, K - 1)
        not_above, above_the_last = F.pad(F.logsigmoid(distance), (0, 1)), F.pad(F.logsigmoid(-distance), (1, 0))
        return not_above + above_the_last + F.pad(F.logsigmoid(_float(self.raw)[1:]), (1, 1))

    def probabilities(self, scores: Tensor) -> Tensor:
        """Probability of each level, `(B, K)`; each row sums to 1."""
        return self.log_probabilities(scores).exp()

    def expected(self, scores: Tensor, levels: Tensor | None = None) -> Tensor:
        """Expected rating `(B,)`, rising with the score; see [`expected_level`]."""
        return expected_level(self.probabilities(scores), levels)

    def loss(self, scores: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
        """`-sum_k q_k log P(y = k)`, q being the label, or the shares of the votes.

        Args:
            scores (`(B,)`): one for each text; equal scores have equal probabilities.
            labels (`(B,)` integers, or `(B, K)`): levels from 0, or votes for each level, which are divided by their
                sum. A row without votes does not count.

        Returns:
            `Tensor`: 0 or more; a scalar, or `(B,)`.
        """
        return _cross_entropy(self.log_probabilities(scores), labels, reduction)

    def forward(self, scores: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
        """The same as `loss`."""
        return self.loss(scores, labels, reduction)


def classification(logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy over K levels that are not in any order to the model, `-sum_k q_k log softmax(logits)_k`.

    Columns and labels as in [`CumulativeLink`]; the model has K outputs, and its score is [`expected_level`] of their
    softmax.

    Args:
        logits (`(B, K)`): equal logits give log K.
        labels (`(B,)` integers, or `(B, K)`): levels from 0, or votes for each level.

    Returns:
        `Tensor`: 0 or more; a scalar, or `(B,)`.
    """
    return _cross_entropy(_float(logits).log_softmax(dim=-1), labels, reduction)


def expected_level(probabilities: Tensor, levels: Tensor | None = None) -> Tensor:
    """`sum_k P(y = k) * level_k`, `(B, K)` to `(B,)`: a score on the scale of the rating.

    Args:
        levels (`(K,)`, *optional*): the rating of each level; default 0, 1, ..., K - 1.
    """
    if levels is None:
        levels = torch.arange(probabilities.shape[-1], device=probabilities.device)
    return (probabilities * levels.to(probabilities.dtype)).sum(dim=-1)


# --- Lists: rankings, one best of many, best and worst ----------------------------------------------


def plackett_luce(
    scores: Tensor,
    ranks: Tensor,
    mask: Tensor | None = None,
    top: int | Tensor | None = None,
    ties: Literal["efron", "breslow"] = "efron",
    reduction: Reduction = "mean",
) -> Tensor:
    """Negative log-likelihood of a ranking: `sum_i [log sum_{j not better than i} exp(s_j) - s_i]`.

    The best is chosen from all, the next from those left, and so on (Luce 1959, Plackett 1975; as a loss ListMLE, Xia
    et al. 2008). Two completions without a tie are Bradley-Terry. Equal scores of K completions give log K!.

    Completions of equal rank count as put in some order that is not known, by one of two approximations of Cox's
    regression, where the same likelihood arises. With g tied, "breslow" (1974) lets each be chosen with all of them
    still there; "efron" (1977) takes the tied ones out step by step, l / g of each before the (l + 1)-th choice, which
    gives the mean likelihood of their orders exactly where their scores are equal. Both pull tied scores together, and
    at best cost g log g and log g! for a tie. Of two tied completions breslow is twice Bradley-Terry with target 1/2,
    efron the same less log 2. Where equal ranks mean "not asked", use `top` or `mask`.

    Columns: `completions, ranks`; for an order of the completions see [`ranks_from_order`].

    Args:
        scores (`(B, K)`): a list of one completion does not count.
        ranks (`(B, K)`): lower is better, equal is a tie; only their order matters.
        mask (`(B, K)`, *optional*): 1 for a completion, 0 for padding.
        top (`int` or `(B,)`, *optional*): only the best so many were put in order; the others are known to be worse,
            in no order (all of one larger rank). A tie across the boundary counts whole. A row of 0 does not count.
        ties: how equal ranks count. Without ties both give the same.

    Returns:
        `Tensor`: 0 or more; a scalar, or `(B,)`. A sum over the choices made, so that long lists weigh more.

    Raises:
        `ValueError`: if top is below 1, or ties is something else.
    """
    if ties not in ("efron", "breslow"):
        raise ValueError(f"ties is {ties!r}; it can be 'efron' or 'breslow'.")
    if isinstance(top, int) and top < 1:
        raise ValueError(f"top is {top}; give how many of the best are in order, 1 or more, or None for all.")
    scores, real = _lists(scores, mask)
    _same_shape(scores=scores, ranks=ranks)
    of_i, of_j = ranks[:, :, None], ranks[:, None, :]
    itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    both = real[:, :, None] & real[:, None, :]  # (B, K, K)
    left = (both & (of_j >= of_i)) | itself
    differences = scores[:, None, :] - scores[:, :, None]  # s_j - s_i
    if ties == "efron":
        tied = (both & (of_j == of_i)) | itself
        taken_before = tied.tril(-1).sum(dim=2).to(scores.dtype)
        log_left = torch.log1p(-taken_before / tied.sum(dim=2))  # of each tied one, at the choice of i
        differences = differences + torch.where(tied, log_left[:, :, None], 0.0)
    losses = torch.where(left, differences, -math.inf).logsumexp(dim=2)  # (B, K)
    counted = real
    if top is not None:
        better = (both & (of_j < of_i)).sum(dim=2)
        counted = real & (better < torch.as_tensor(top, device=scores.device).reshape(-1, 1))
    losses = torch.where(counted, losses, 0.0).sum(dim=1)
    return _reduce(losses, reduction, counted.any(dim=1) & (real.sum(dim=1) > 1))


def ranks_from_order(order: Tensor) -> Tensor:
    """Ranks from 1 of an order that names the columns from best to worst: `[2, 0, 1]` gives `[2, 3, 1]`.

    Args:
        order (`(B, K)` integers): each row has every column once, those of padding last.
    """
    places = torch.arange(1, order.shape[1] + 1, device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places.to(order.dtype))


def info_nce(
    scores: Tensor,
    positive: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """One best of many, `-log softmax(scores / temperature)[positive]` (InfoNCE, arXiv 1807.03748, eq. 4).

    The first choice of [`plackett_luce`]: nothing is said of the others among themselves. Equal scores give log K; two
    completions are Bradley-Terry.

    Columns: `completions, best`.

    Args:
        scores (`(B, K)`): a list of one completion does not count.
        positive (`(B,)` integers): the column of the best; it must be a real one.
        mask (`(B, K)`, *optional*): 1 for a completion, 0 for padding.
        temperature: positive; lower looks harder at the strongest of the others.

    Returns:
        `Tensor`: 0 or more; a scalar, or `(B,)`.

    Raises:
        `ValueError`: if the temperature is not positive.
    """
    if temperature <= 0.0:
        raise ValueError(f"temperature is {temperature}; give more than 0.")
    scores, real = _lists(scores, mask)
    differences = (scores - scores.gather(1, _column(positive, scores, "positive"))) / temperature
    return _reduce(_log_sum_exp(differences, real), reduction, real.sum(dim=1) > 1)


def best_worst(
    scores: Tensor,
    best: Tensor,
    worst: Tensor,
    mask: Tensor | None = None,
    sequential: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """The best and the worst of a list, `-log P(best = i, worst = j)`, two models (Marley and Louviere 2005).

    - maxdiff: `P = exp(s_i - s_j) / sum over all k != l of exp(s_k - s_l)`. Both are seen at once, as the pair that is
      furthest apart. Of two completions it is `sigma(2 d)`: half the scale of Bradley-Terry.
    - `sequential`: first the best, then the worst of the others: `softmax(s)_i * softmax(-s without i)_j`. Of two
      completions it is Bradley-Terry.

    Equal scores of K completions give log K (K - 1) in both.

    Columns: `completions, best, worst`.

    Args:
        scores (`(B, K)`): a list of one completion does not count.
        best, worst (`(B,)` integers): columns of real completions. They must differ, which is not checked here: a row
            where they do not has a loss that means nothing.
        mask (`(B, K)`, *optional*): 1 for a completion, 0 for padding.

    Returns:
        `Tensor`: 0 or more; a scalar, or `(B,)`.
    """
    scores, real = _lists(scores, mask)
    best, worst = _column(best, scores, "best"), _column(worst, scores, "worst")
    over_best, over_worst = scores - scores.gather(1, best), scores - scores.gather(1, worst)
    if sequential:
        others = real.scatter(1, best, False)
        losses = _log_sum_exp(over_best, real) + _log_sum_exp(-over_worst, others)
    else:
        itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
        pairs = real[:, :, None] & real[:, None, :] & ~itself
        losses = _log_sum_exp((over_best[:, :, None] - over_worst[:, None, :]).flatten(1), pairs.flatten(1))
    return _reduce(losses, reduction, real.sum(dim=1) > 1)


# --- Single texts with a label ----------------------------------------------------------------------


def binary_cross_entropy(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    pos_weight: float = 1.0,
    noise: tuple[float, float] = (0.0, 0.0),
    reduction: Reduction = "mean",
) -> Tensor:
    """`-w * [pos_weight * y log p + (1 - y) log(1 - p)]`, where p is the probability that the label is seen as 1.

    Without noise `p = sigma(s)`, and the loss is torch's `binary_cross_entropy_with_logits`. Implicit signals (a
    click, a copied answer, no complaint) are wrong at rates that differ by class, `noise = (e0, e1)` with
    `e0 = P(seen 1 | truly 0)` and `e1 = P(seen 0 | truly 1)` (the model of Natarajan et al. 2013). Then
    `p = (1 - e1) * sigma(s) + e0 * sigma(-s)`: the forward correction of arXiv 1609.03683, theorem 2, by which
    sigma(s) still learns the true label. The rates must be known, from rows that people have labelled too. A label of
    1 then costs at most `-log e0`, one of 0 `-log e1`, and the gradient vanishes where a score contradicts its label
    for good. (The correction of Natarajan et al. itself, lemma 1, is unbiased but not bounded below; it is not here.)

    A score of 0 gives log 2 without noise. Columns: `completion, label`.

    Args:
        scores, labels (any shape, the same): labels in [0, 1], shares of votes too; NaN is missing.
        weights (same shape, *optional*): 0 or more.
        pos_weight: how much more a 1 counts than a 0, see [`balanced_pos_weight`]. The mean is over rows all the same,
            as in torch. It shifts what sigma(s) means, by `log pos_weight` in the score.
        noise (`tuple[float, float]`): e0 and e1, 0 or more, together below 1.

    Returns:
        `Tensor`: 0 or more; a scalar, or the shape of the scores.

    Raises:
        `ValueError`: if pos_weight is not positive or the rates are out of range.
    """
    e0, e1 = noise
    if e0 < 0.0 or e1 < 0.0 or e0 + e1 >= 1.0:
        raise ValueError(
            f"noise is {noise}; give two rates of 0 or more that sum to less than 1, else labels say nothing, or the "
            "opposite."
        )
    if pos_weight <= 0.0:
        raise ValueError(f"pos_weight is {pos_weight}; give more than 0.")
    scores, labels, counts = _known(scores, labels, weights)
    log_1, log_0 = F.logsigmoid(scores), F.logsigmoid(-scores)
    seen_1 = _log_mixture(log_1, 1.0 - e1, log_0, e0)
    seen_0 = _log_mixture(log_0, 1.0 - e0, log_1, e1)
    return _reduce(-(pos_weight * labels * seen_1 + (1.0 - labels) * seen_0), reduction, counts)


def balanced_pos_weight(labels: Tensor) -> float:
    """How many 0s there are for each 1, as `pos_weight`: both classes then count alike. Missing labels are left out.

    Take it once of all training rows, not of a batch, which may hold one class alone.

    Raises:
        `ValueError`: if one of the two classes has no row.
    """
    known = labels[~labels.isnan()].double()
    ones = known.sum().item()
    zeros = len(known) - ones
    if ones <= 0.0 or zeros <= 0.0:
        raise ValueError(
            f"Of {len(known)} labels {ones:g} are 1 and {zeros:g} are 0; both are needed to balance them."
        )
    return zeros / ones


def process(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    kind: Kind = "bce",
    delta: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """A label for each step: binary cross-entropy or a distance, averaged over the steps of all rows together.

    A step counts alike in a short and in a long solution (arXiv 2305.20050 labels steps by hand; arXiv 2312.08935 by
    the share of continuations that end right, a soft label).

    Columns: `completions, labels`, a list of steps and one of labels in each row.

    Args:
        scores, labels (`(B, S)`): labels in [0, 1] for "bce"; NaN is a step without a label.
        mask (`(B, S)`, *optional*): 1 for a step, 0 for padding.
        kind: "bce", "mse", "mae" or "huber" (with `delta`).

    Returns:
        `Tensor`: 0 or more; a scalar, or `(B, S)`.
    """
    scores, real = _lists(scores, mask)
    _same_shape(scores=scores, labels=labels)
    return _regression(kind, scores, torch.where(real, labels, 0.0), real, reduction, delta)


# --- Several objectives ---------------------------------------------------------------------------


def multi_objective(
    scores: Tensor,
    targets: Tensor,
    kind: Kind = "mse",
    weights: Tensor | None = None,
    delta: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """One head for each objective: `sum w_o * l(s_bo, y_bo) / sum w_o` over the targets that are there.

    Rows need not be rated on every objective (the first stage of ArmoRM, arXiv 2406.12845). The mean is over all
    targets of the batch, so that an objective with few ratings counts little unless its weight is raised.

    Columns: `completion` and a column of ratings for each objective.

    Args:
        scores, targets (`(B, O)`): NaN is a missing target; a row of NaN alone does not count.
        kind: "mse", "mae", "huber" (with `delta`), or "bce" for targets in [0, 1].
        weights (`(O,)`, *optional*): 0 or more, of each objective.

    Returns:
        `Tensor`: 0 or more; a scalar, or `(B, O)`.

    Raises:
        `ValueError`: if the kind is something else, or there is not one weight for each objective.
    """
    if weights is not None:
        if weights.shape != scores.shape[-1:]:
            raise ValueError(f"weights has shape {tuple(weights.shape)}, but there are {scores.shape[-1]} objectives.")
        weights = weights.expand_as(scores)
    return _regression(kind, scores, targets, weights, reduction, delta)


def gate(scores: Tensor, gate_logits: Tensor) -> Tensor:
    """One score of several objectives, `sum_o softmax(gate_logits)_o * s_o` (the gate of ArmoRM, arXiv 2406.12845).

    The coefficients are 0 or more and sum to 1, so that a better objective never lowers the score, which stays between
    the lowest and the highest of them. Put the objectives on one scale first, and train the gate by
    [`bradley_terry`] on what it gives.

    Args:
        scores (`(B, O)`): a score for each objective.
        gate_logits (`(B, O)` or `(O,)`): from the prompt, or the same for all rows. Equal ones give the mean.

    Returns:
        `Tensor`: `(B,)`.
    """
    if gate_logits.shape not in (scores.shape, scores.shape[-1:]):
        raise ValueError(
            f"gate_logits has shape {tuple(gate_logits.shape)}; for scores of {tuple(scores.shape)} give the same, or "
            f"{tuple(scores.shape[-1:])}."
        )
    scores = _float(scores)
    return (_float(gate_logits).softmax(dim=-1).to(scores.dtype) * scores).sum(dim=-1)


# --- What a score should not depend on ----------------------------------------------------------------


def residual(scores: Tensor, covariate: Tensor, mask: Tensor | None = None, keep_mean: bool = False) -> Tensor:
    """Scores less their least-squares fit `a + b * x` on a covariate, such as the length, within the batch.

    `s - mean(s) - b * (x - mean(x))`, `b = cov(s, x) / var(x)`. What is left has correlation 0 with the covariate, and
    so has the gradient of any loss of it: no step can raise scores along the covariate, in this batch. The model
    itself may still use it; measure that afterwards.

    Two numbers are fitted, so that two scores leave nothing: take batches of dozens, all of them at once (the chosen
    and the rejected texts together). Where the covariate is constant, or there is one score, the mean alone is
    subtracted.

    Args:
        scores, covariate (any shape, the same): all that is real is one sample, rows of lists too. No gradient goes to
            the covariate.
        mask (same shape, *optional*): 1 for what is real.
        keep_mean: whether the scores keep their mean, for losses of ratings, which need to know where 0 is.

    Returns:
        `Tensor`: the shape of the scores, 0 on padding.
    """
    _same_shape(scores=scores, covariate=covariate)
    scores, real = real_scores(scores, mask)
    x = torch.where(real, covariate.detach().to(scores.dtype), 0.0)
    count = real.sum().clamp(min=1)
    mean = scores.sum() / count
    centered = torch.where(real, scores - mean, 0.0)
    x_centered = torch.where(real, x - x.sum() / count, 0.0)
    # Below this what is left of a constant is rounding, which must not be fitted.
    varies = x_centered.norm() > 1e-6 * x.norm()
    direction = torch.where(varies, x_centered / torch.where(varies, x_centered.norm(), 1.0), 0.0)
    left = centered - (centered * direction).sum() * direction
    return torch.where(real, left + mean, 0.0) if keep_mean else left


# --- Shared -------------------------------------------------------------------------------------------


def _float(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        said = " and ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"The shapes differ: {said}. Give tensors of the same shape.")


def _numbers(**tensors: Tensor) -> list[Tensor]:
    """Floats of the same shape `(B,)`."""
    _same_shape(**tensors)
    for name, tensor in tensors.items():
        if tensor.ndim != 1:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; give one number for each row, (B,).")
    return [_float(tensor) for tensor in tensors.values()]


def _per_row(value: float | Tensor, scores: Tensor, name: str) -> Tensor:
    """One number for all rows, or one for each."""
    if not isinstance(value, Tensor):
        return torch.full_like(scores, value)
    if value.ndim:
        _same_shape(**{name: value, "scores": scores})
    return value.to(scores.dtype).expand_as(scores)


def real_scores(scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores with 0 on padding, and where they are real. A NaN left there would make the gradient NaN."""
    scores = _float(scores)
    if mask is None:
        return scores, torch.ones_like(scores, dtype=torch.bool)
    _same_shape(scores=scores, mask=mask)
    real = mask.bool()
    return torch.where(real, scores, 0.0), real


def _lists(scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if scores.ndim != 2:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; give a list for each row, (B, K).")
    return real_scores(scores, mask)


def _column(index: Tensor, scores: Tensor, name: str) -> Tensor:
    if index.shape != scores.shape[:1]:
        raise ValueError(f"{name} has shape {tuple(index.shape)}; give one column for each of {len(scores)} rows.")
    return index.long()[:, None]


def _log_sum_exp(x: Tensor, which: Tensor) -> Tensor:
    """Over the last dimension, of those that are meant; of all where none is, because of an empty sum's gradient."""
    which = which | ~which.any(dim=-1, keepdim=True)
    return torch.where(which, x, -math.inf).logsumexp(dim=-1)


def _log_mixture(log_a: Tensor, weight_a: float, log_b: Tensor, weight_b: float) -> Tensor:
    """`log(weight_a * a + weight_b * b)`; weight_a is positive."""
    if weight_b == 0.0:
        return log_a + math.log(weight_a)
    return torch.logaddexp(log_a + math.log(weight_a), log_b + math.log(weight_b))


def _binary(scores: Tensor, p: Tensor) -> Tensor:
    return -(p * F.logsigmoid(scores) + (1.0 - p) * F.logsigmoid(-scores))


def _known(scores: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, targets and weights, with 0 for what is missing."""
    _same_shape(scores=scores, targets=targets)
    known = ~targets.isnan()
    scores = _float(scores)
    counts = known.to(scores.dtype)
    if weights is not None:
        _same_shape(scores=scores, weights=weights)
        # A weight may be NaN where there is no target: that of no votes at all.
        counts = torch.where(known, weights.to(scores.dtype), 0.0)
    return scores, torch.where(known, targets.to(scores.dtype), 0.0), counts


def _regression(
    kind: str, scores: Tensor, targets: Tensor, weights: Tensor | None, reduction: Reduction, delta: float = 1.0
) -> Tensor:
    scores, targets, counts = _known(scores, targets, weights)
    if kind == "mse":
        losses = (scores - targets) ** 2
    elif kind == "mae":
        losses = (scores - targets).abs()
    elif kind == "huber":
        if delta <= 0.0:
            raise ValueError(f"delta is {delta}; give more than 0, in units of the rating.")
        losses = F.huber_loss(scores, targets, reduction="none", delta=delta)
    elif kind == "bce":
        losses = _binary(scores, targets)
    else:
        raise ValueError(f"kind is {kind!r}; it can be {', '.join(KINDS)}.")
    return _reduce(losses, reduction, counts)


def _cross_entropy(logprobs: Tensor, labels: Tensor, reduction: Reduction) -> Tensor:
    if logprobs.ndim != 2 or labels.shape not in (logprobs.shape, logprobs.shape[:1]):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} for levels of shape {tuple(logprobs.shape)}; give (B,) levels, "
            "or (B, K) votes for each level."
        )
    if labels.ndim == 1:
        if labels.is_floating_point():
            raise ValueError(f"labels is {labels.dtype}; give levels as integers from 0, or votes as (B, K).")
        votes = F.one_hot(labels.long(), logprobs.shape[1]).to(logprobs.dtype)
    else:
        votes = labels.to(logprobs.dtype)
    total = votes.sum(dim=1)
    shares = votes / torch.where(total > 0, total, 1.0)[:, None]
    return _reduce(-(shares * logprobs).sum(dim=1), reduction, total > 0)


def _reduce(losses: Tensor, reduction: Reduction, weights: Tensor | None = None) -> Tensor:
    weights = torch.ones_like(losses) if weights is None else weights.to(losses.dtype)
    if reduction == "none":
        return losses * weights
    if reduction == "mean":
        total = weights.sum()
        return (losses * weights).sum() / torch.where(total > 0, total, 1.0)
    raise ValueError(f"reduction is {reduction!r}; it can be 'mean' or 'none'.")
