"""Making a reward model lean less on what people were not asked about: four small means, to be used one by one.

| when | what | which data it needs |
|---|---|---|
| before training | [`balance_pairs`]: the longer text is the better one in half of the pairs | pairs |
| in the loss | [`residual_scores`]: the loss sees of each score what length and the like do not tell | any |
| in the loss | [`group_penalty`]: scores are not further above the ratings for one group than for others | ratings |
| after training | [`ResidualReward`]: the score less what it gives for length beyond what people do | labelled rows |

[`covariates`] counts what is to be taken out. `bias/measure.py` measures before and after; `docs/reward_bias.md` shows
what each of them did to a model.
"""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import ArrayLike
from torch import Tensor

from rlhf_recipes.reward_modeling.losses.maths import real_scores
from rlhf_recipes.rewards.rules import Repetition
from rlhf_recipes.statistics import Floats, numbers, strata_of
from rlhf_recipes.texts import Text, as_text

logger = logging.getLogger(__name__)

# Marks at the beginning of a line: bullets, numbers, headings, quotes; rules; and those within: bold, code, tables.
LINE_MARKS = re.compile(r"^[ \t]*([-+•*]|\d{1,3}[.)]|#{1,6}|>)(?=[ \t])|^[ \t]*([-=*]{3,})[ \t]*$", re.MULTILINE)
INNER_MARKS = re.compile(r"\*+(?=\S)|(?<=\S)\*+|__+|`+|~~+|\|")  # a star between spaces is a sign of times
REPEATED = Repetition(n=3)
COLLINEAR = 1e-5  # a direction weaker than this, among columns of length 1, is rounding


# --- What scores may lean on -----------------------------------------------------------------------------


def length(text: str) -> float:
    """Characters, white space at the ends left out."""
    return float(len(text.strip()))


def formatting(text: str) -> float:
    """Share of markdown's marks among the visible characters, from 0 to 1; 0 where there are none of these.

    Marks are those of bullets, numbers of lists, headings, quotes, rules, bold, italics, code and tables.
    """
    visible = sum(not character.isspace() for character in text)
    marks = sum(len(match.group().strip()) for match in LINE_MARKS.finditer(text))
    rest = LINE_MARKS.sub("", text)
    marks += sum(len(match.group()) for match in INNER_MARKS.finditer(rest))
    return marks / visible if visible else 0.0


def repetition(text: str) -> float:
    """Share of runs of three words that were there before, from 0 towards 1; 0 for fewer than three words."""
    return -REPEATED.score(text)


COVARIATES: dict[str, Callable[[str], float]] = {"length": length, "format": formatting, "repetition": repetition}


def covariates(texts: Sequence[Text], names: Sequence[str] = tuple(COVARIATES)) -> Floats:
    """What scores may lean on, counted in each text.

    Args:
        texts (`Sequence` of length N): Completions: texts, or messages, whose texts are read.
        names (`Sequence[str]`, *optional*, defaults to all): `length` (characters), `format`, `repetition` (shares).

    Returns:
        `numpy.ndarray` of shape `(N, C)`, a column for each name.

    Raises:
        `ValueError`: if there is no name, or one is unknown or given twice.
    """
    wrong = [name for name in names if name not in COVARIATES]
    if wrong or not names or len(set(names)) < len(names) or isinstance(names, str):
        raise ValueError(f"The covariates are {names!r}; give one or more of {', '.join(COVARIATES)}, each once.")
    rows = [[COVARIATES[name](text) for name in names] for text in map(as_text, texts)]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))


# --- In the loss -----------------------------------------------------------------------------------------


def residual_scores(scores: Tensor, covariates: Tensor, mask: Tensor | None = None, keep_mean: bool = False) -> Tensor:
    """Scores less their least-squares fit on several covariates, `s - mean(s) - X X^+ (s - mean(s))`, in the batch.

    X are the centered covariates, and `X^+` is its pseudo-inverse. What is left has correlation 0 with each of them,
    and so has the gradient of any loss of it. Take batches with many more texts than covariates, the chosen and the
    rejected together. A covariate that is constant, or that others tell, takes nothing more out.

    It takes out all that goes with the covariates, also what people mean by it: where better texts are longer, the
    scores lose that. [`ResidualReward`] keeps it.

    Args:
        scores (any shape): all that is real is one sample.
        covariates (`(*scores.shape, C)`): No gradient goes to them. On padding they may hold anything.
        mask (shape of the scores, *optional*): 1 for what is real.
        keep_mean: whether the scores keep their mean, for losses of ratings.

    Returns:
        `Tensor`: the shape of the scores, 0 on padding.

    Raises:
        `ValueError`: if the shapes do not fit.
    """
    if covariates.shape[:-1] != scores.shape or covariates.ndim != scores.ndim + 1:
        raise ValueError(
            f"The covariates have shape {tuple(covariates.shape)} for scores of shape {tuple(scores.shape)}; give C "
            "numbers for each score, in one more dimension."
        )
    scores, real = real_scores(scores, mask)
    x = torch.where(real[..., None], covariates.detach().double(), 0.0).reshape(-1, covariates.shape[-1])  # (N, C)
    here = real.reshape(-1, 1)
    count = real.sum().clamp(min=1)
    mean = scores.sum() / count
    centered = torch.where(real, scores - mean, 0.0)
    x_centered = torch.where(here, x - x.sum(dim=0) / count, 0.0)
    size = x_centered.norm(dim=0)
    varies = size > 1e-6 * x.norm(dim=0)
    columns = torch.where(varies, x_centered / torch.where(varies, size, 1.0), 0.0)
    fitted = columns @ (torch.linalg.pinv(columns, atol=COLLINEAR, rtol=0.0) @ centered.reshape(-1).double())
    left = centered - fitted.to(scores.dtype).reshape(scores.shape)
    return torch.where(real, left + mean, 0.0) if keep_mean else torch.where(real, left, 0.0)


def group_penalty(scores: Tensor, targets: Tensor, groups: Tensor) -> Tensor:
    """`mean over pairs of groups g < h of (m_g - m_h)^2`, with m the mean of `score - target` in a group of the batch.

    It is 0 where the score is as far above the ratings, or below, for every group: the balanced residuals of Calders
    et al. (2013, Controlling Attribute Effect in Linear Regression), asked for with a penalty. Add it to the loss,
    times a weight. With targets of 0 it asks for equal mean scores, which is another wish: that groups are equally
    good.

    Args:
        scores (`(B,)`), targets (`(B,)`): Scores on the scale of the ratings. A target that is NaN is missing.
        groups (`(B,)`): The number of each row's group; below 0 for none.

    Returns:
        `Tensor`: a scalar, 0 or more, in squared units of the rating; 0 where fewer than two groups are in the batch.

    Raises:
        `ValueError`: if the shapes differ, or the groups are no whole numbers.
    """
    if scores.ndim != 1 or not scores.shape == targets.shape == groups.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (scores, targets, groups))
        raise ValueError(f"Scores, targets and groups have shapes {shapes}; give one of each for every row, (B,).")
    if groups.is_floating_point():
        raise ValueError(f"groups is {groups.dtype}; give the number of each row's group as an integer.")
    known = ~targets.isnan() & (groups >= 0)
    residuals = scores[known].float() - targets[known].float()
    _, index = groups[known].unique(return_inverse=True)
    counts = torch.bincount(index)
    if len(counts) < 2:
        return scores.float().sum() * 0.0
    means = torch.zeros(len(counts), device=scores.device).index_add(0, index, residuals) / counts
    squares = (means[:, None] - means[None, :]) ** 2  # (G, G), each pair of groups twice
    return squares.sum() / (len(counts) * (len(counts) - 1))


# --- Before training -------------------------------------------------------------------------------------


def balance_pairs(
    dataset: Dataset,
    covariate: str | ArrayLike = "length",
    strata: int = 4,
    how: Literal["drop", "weigh"] = "drop",
    seed: int = 0,
) -> Dataset:
    """Pairs in which the chosen text is as often the longer one as the shorter one, at every margin.

    In each stratum of the margin the sort of pairs that there are more of is thinned out by chance (`drop`), or weighs
    less (`weigh`: each sort weighs half of the stratum, in a column `weight`; one that is there is multiplied). Pairs
    of equal length stay as they are. A stratum with one sort alone cannot be balanced: its pairs go, or weigh 0, but
    for those of equal length. How many there were and are is in the log.

    It balances how often, not by how much: where the chosen text is seldom the longer one but then by far, a mean
    difference of length is left. The log says it.

    Args:
        dataset ([`~datasets.Dataset`]): Pairs: `chosen`, `rejected`, perhaps `margin`.
        covariate (`str` or `ArrayLike` of shape `(N,)`, *optional*, defaults to `"length"`):
            A name of [`covariates`], or what the chosen text has more of, for each pair.
        strata (`int`, *optional*, defaults to 4): By margin; pairs without one are a stratum of their own.
        how (`"drop"` or `"weigh"`, *optional*, defaults to `"drop"`): Whether pairs are left out or weighed.
        seed (`int`, *optional*, defaults to 0): Of the draw.

    Raises:
        `ValueError`: if there are no pairs, `how` or the covariate is unknown, or nothing would be left.
    """
    missing = [column for column in ("chosen", "rejected") if column not in dataset.column_names]
    if missing or how not in ("drop", "weigh") or strata < 1:
        raise ValueError(
            f"Balancing needs pairs (chosen, rejected), how 'drop' or 'weigh', and 1 stratum or more. The columns are "
            f"{', '.join(dataset.column_names)}, how is {how!r}, strata {strata}."
        )
    rows = len(dataset)
    if isinstance(covariate, str):
        sides = [covariates(list(dataset[side]), [covariate])[:, 0] for side in ("chosen", "rejected")]
        difference = sides[0] - sides[1]
    else:
        difference = numbers(covariate, "covariate differences")
    if len(difference) != rows:
        raise ValueError(f"There are {len(difference)} covariate differences for {rows} pairs; give one for each.")
    weights = _balanced(np.sign(difference), _margin_strata(dataset, strata), how, np.random.default_rng(seed))
    if not weights.any():
        raise ValueError(
            f"Of {rows} pairs the chosen text has {'more' if (difference > 0).any() else 'less'} of the covariate in "
            "all, so they cannot be balanced. Take other pairs, or take the covariate out of the loss."
        )
    _log_balance(difference, weights, how)
    if how == "drop":
        return dataset.select(np.flatnonzero(weights))
    if "weight" in dataset.column_names:
        weights = weights * numbers(dataset["weight"], "weights")
        dataset = dataset.remove_columns("weight")
    return dataset.add_column("weight", weights.tolist())


def _margin_strata(dataset: Dataset, strata: int) -> np.ndarray:
    given = list(dataset["margin"]) if "margin" in dataset.column_names else [None] * len(dataset)
    margins = np.array(given, dtype=np.float64)  # NaN where there is none
    known = np.isfinite(margins)
    stratum = np.zeros(len(margins), dtype=np.int64)
    if known.any():
        stratum[known] = 1 + strata_of(margins[known], strata, int(known.sum()))
    return stratum


def _balanced(sign: Floats, stratum: np.ndarray, how: str, generator: np.random.Generator) -> Floats:
    """A weight for each pair; 0 and 1 where pairs are dropped."""
    weights = np.ones(len(sign))
    for one in np.unique(stratum):
        more, less = (np.flatnonzero((stratum == one) & (sign == side)) for side in (1, -1))
        fewer = min(len(more), len(less))
        for rows in (more, less):
            if how == "weigh":
                weights[rows] = (len(more) + len(less)) / 2 / len(rows) if fewer else 0.0
            else:
                weights[rows] = 0.0
                weights[generator.permutation(rows)[:fewer]] = 1.0
    return weights


def _log_balance(difference: Floats, weights: Floats, how: str) -> None:
    effective = weights.sum() ** 2 / (weights**2).sum()
    logger.info(
        "Balanced %d pairs: the chosen text had more of the covariate in %d and less in %d; now in %.0f and %.0f%s. "
        "The mean difference was %.3g and is %.3g.",
        len(weights),
        *(int((difference > 0).sum()), int((difference < 0).sum())),
        *(weights[difference > 0].sum(), weights[difference < 0].sum()),
        f" by weight, worth {effective:.0f} pairs of equal weight" if how == "weigh" else "",
        *(difference.mean(), float((weights * difference).sum() / weights.sum())),
    )
