"""How rewards of one list stand to each other: spread, share of the sum, correlation, and weights that mean what they
say.

A weight multiplies a reward in its own units. Of two rewards with weight 1 the one that spreads over ten units decides
nearly alone beside one that spreads over a tenth. `measure_balance` scores a sample of completions once, and says what
each reward decides, and which weights would give each the influence that was meant.

```python
balance = measure_balance(load_rewards(["runs/quickstart/reward", "PlainProse"]), prompts, completions, ids)
print(balance.to_yaml())
balance.plot("balance.png")
```
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text as Cell

from rlhf_recipes.figures import as_figure, draw_png, paint_correlations, paint_histogram, percent, shortened
from rlhf_recipes.rewards.base import Ids, Parts, Series, Texts
from rlhf_recipes.rewards.contract.checks import Weight
from rlhf_recipes.rewards.weighted_sum import WeightedSum, WeightSchedule
from rlhf_recipes.rewards.workbench.as_yaml import entry_of, specs_of
from rlhf_recipes.rewards.workbench.remarks import remarks_on_proposal, remarks_on_values, remarks_on_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONSTANT = 1e-9  # a spread below this part of the largest value is rounding
# What is said of the values of a reward, and the title of the column.
DESCRIBED = {
    "mean": "mean", "std": "std", "minimum": "min", "lower_quartile": "25%", "median": "50%", "upper_quartile": "75%",
    "maximum": "max",
}  # fmt: skip


@dataclass(frozen=True)
class RewardBalance:
    """One reward of a list, over the rows of a sample. A figure that cannot be said is `None`.

    Args:
        name (`str`): Of the reward.
        weight (`float`): What it is multiplied with.
        rows (`int`): To how many rows it applies. All figures but the shares are over these.
        mean, std, minimum, lower_quartile, median, upper_quartile, maximum (`float`, *optional*):
            Of its values, before weighting. `std` divides by the number of rows.
        share (`float`, *optional*):
            `cov(w_k r_k, s) / var(s)` with `s = sum_j w_j r_j`, over all rows, a reward that does not apply counted as
            0: how much of what tells completions apart comes from it. Shares add up to 1. One is negative where the
            reward pulls against the sum.
        scale, center (`float`, *optional*):
            What a `Scale` needs so that the reward has spread 1 and mean 0: `std` and `mean`. The center of a
            per-token reward is 0, because a `Scale` takes it from every token.
        proposed_weight (`float`):
            `weight / std`, so that weights are in units of spread; `weight` where there is no spread.
        proposed_share (`float`, *optional*):
            The share with all proposed weights.
    """

    name: str
    weight: float
    rows: int
    mean: float | None = None
    std: float | None = None
    minimum: float | None = None
    lower_quartile: float | None = None
    median: float | None = None
    upper_quartile: float | None = None
    maximum: float | None = None
    share: float | None = None
    scale: float | None = None
    center: float | None = None
    proposed_weight: float = 0.0
    proposed_share: float | None = None


@dataclass(frozen=True)
class Balance:
    """What `measure_balance` found.

    Args:
        rows (`int`): How many completions were scored.
        rewards (`tuple[RewardBalance, ...]`): One for each reward, in the order of the list. Potentials are left out.
        total (`RewardBalance`): The weighted sum; only what describes its values is filled.
        pearson, spearman (`tuple`): `(K, K)` correlations over rows to which both rewards apply; `None` where there
            are fewer than three such rows, or one of the two has one value for all of them.
        remarks (`tuple[str, ...]`): What the figures mean, in sentences.
        proposal_remarks (`tuple[str, ...]`): What to mind about the proposed weights.
        values (`Mapping`): By name, the reward of each row, or `None`.
        totals (`Series`): The weighted sum of each row; `None` where no reward applies.
        specs (`tuple`): The list as a YAML file would say it, without weights, potentials included.
        proposed (`tuple`): A weight for each of `specs`: a number, a schedule, or a function that no YAML can say.
    """

    rows: int
    rewards: tuple[RewardBalance, ...]
    total: RewardBalance
    pearson: tuple[tuple[float | None, ...], ...]
    spearman: tuple[tuple[float | None, ...], ...]
    remarks: tuple[str, ...]
    proposal_remarks: tuple[str, ...]
    values: Mapping[str, Series] = field(repr=False)
    totals: Series = field(repr=False)
    specs: tuple[Mapping[str, Any], ...] = field(repr=False)
    proposed: tuple[Weight, ...] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """All figures and remarks, for a JSON file; without the rows."""
        return {
            "rows": self.rows,
            "rewards": [dataclasses.asdict(one) for one in self.rewards],
            "total": {key: getattr(self.total, key) for key in ("rows", *DESCRIBED)},
            "pearson": [list(row) for row in self.pearson],
            "spearman": [list(row) for row in self.spearman],
            "remarks": [*self.remarks, *self.proposal_remarks],
        }

    def to_yaml(self) -> str:
        """A `reward_funcs:` block for a recipe, with the proposed weights.

        A reward that was handed over as an object is written as its class and settings, or its import path.
        """
        lines = [f"# Weights by spread, measured on {self.rows} completions.", "reward_funcs:"]
        for spec, weight in zip(self.specs, self.proposed, strict=True):
            lines += entry_of(spec, weight)
        return "\n".join(lines) + "\n"

    def table(self, without: Sequence[str] = ()) -> Table:
        """The figures of each reward and of their sum, for rich.

        Args:
            without (`Sequence[str]`, *optional*): Columns to leave out where there is no room, such as `"25%"`.
        """
        shown = {key: title for key, title in DESCRIBED.items() if title not in without}
        table = _table("reward", "weight", "rows", *shown.values(), "share")
        for one in self.rewards:
            figures = [as_figure(getattr(one, key)) for key in shown]
            table.add_row(_name(one.name), as_figure(one.weight), str(one.rows), *figures, percent(one.share))
        table.add_section()
        figures = [as_figure(getattr(self.total, key)) for key in shown]
        table.add_row(_name(self.total.name), "", str(self.total.rows), *figures, "", style="bold")
        return table

    def proposal_table(self) -> Table:
        """What each reward decides, now and with the proposed weights, and the settings of a `Scale`; for rich."""
        table = _table("reward", "weight", "share", "proposed weight", "proposed share", "scale", "center")
        for one in self.rewards:
            shares = percent(one.share), as_figure(one.proposed_weight, 4), percent(one.proposed_share)
            table.add_row(
                _name(one.name), as_figure(one.weight), *shares, as_figure(one.scale, 4), as_figure(one.center, 4)
            )
        return table

    def correlation_table(self) -> Table:
        """Pearson's correlation above the diagonal and Spearman's below it, for rich."""
        table = _table("", *(str(number) for number in range(1, len(self.rewards) + 1)))
        for row, one in enumerate(self.rewards):
            cells = []
            for column in range(len(self.rewards)):
                matrix = self.pearson if column > row else self.spearman
                value = matrix[row][column]
                cells.append("" if row == column else "-" if value is None else f"{value:+.2f}")
            table.add_row(_name(f"{row + 1} {one.name}"), *cells)
        return table

    def series(self) -> dict[str, Series]:
        """The weighted sum and each reward, by name; of a single reward that alone, because the sum repeats it."""
        return ({} if len(self.rewards) == 1 else {self.total.name: self.totals}) | dict(self.values)

    def plot(self, path: str | Path, correlations: bool = True) -> Path:
        """Draw how the values of each reward and of the sum spread, beside the `correlations` of several (PNG)."""
        series, beside = self.series(), correlations and len(self.rewards) > 1
        side = 2.4 + 0.6 * len(self.rewards) if beside else 0.0

        def paint(canvas: "Figure") -> None:
            halves = canvas.add_gridspec(1, 2 if beside else 1, width_ratios=[side, 5.2] if beside else [1])
            if beside:
                paint_correlations(canvas.add_subplot(halves[0]), [one.name for one in self.rewards], self.pearson)
            panels = halves[-1].subgridspec(len(series), 1, hspace=0.08)
            for number, (name, values) in enumerate(series.items()):
                paint_histogram(canvas.add_subplot(panels[number]), name, values)

        return draw_png(path, (side + 5.2, max(side * 0.86, 1.35 * len(series), 3.0)), paint)


def measure_balance(
    rewards: WeightedSum, prompts: Texts, completions: Texts, completion_ids: Ids, **columns: Any
) -> Balance:
    """Score a sample of completions with each reward once, and compare what they say.

    Take completions of the policy that is to be trained: human texts, or those of another model, spread differently.

    Args:
        rewards ([`~rlhf_recipes.rewards.WeightedSum`]): The rewards and their weights.
        prompts, completions, completion_ids, columns: As every reward is given them.

    Raises:
        `RewardError`: if a reward raises, or gives NaN.
    """
    return balance_of(rewards, rewards.parts(prompts, completions, completion_ids, **columns))


def balance_of(
    rewards: WeightedSum,
    parts: Parts,
    progress: float = 0.0,
    specs: Sequence[str | Mapping[str, Any]] | None = None,
) -> Balance:
    """As `measure_balance`, of values that are there already.

    Args:
        parts (`dict`): Values by name, as from `WeightedSum.parts`. NaN and infinity are left out and remarked upon.
        progress (`float`, *optional*, defaults to 0.0): The share of the run that is over, for weights that change.
        specs (`Sequence`, *optional*): The rewards as the YAML file had them. Default: what the objects tell.
    """
    series = rewards.per_row(parts)
    rows = len(next(iter(parts.values())))
    given = [[math.nan if value is None else value for value in own] for own in series.values()]
    values = np.array(given, dtype=float).reshape(len(series), rows)
    missing = np.array([[value is None for value in own] for own in series.values()]).reshape(values.shape)
    broken = dict(zip(series, (~np.isfinite(values) & ~missing).sum(axis=1).tolist(), strict=True))
    values = np.where(np.isfinite(values), values, math.nan)
    has_reward = np.array([any(own[row] is not None for own in parts.values()) for row in range(rows)], dtype=bool)
    weight_of = rewards.weights_at(progress)
    weights = {name: weight_of[name] for name in series}
    balances, totals, new_totals = _balances(values, weights, rewards.token_names, has_reward)
    from scipy.stats import pearsonr, spearmanr  # takes most of a second

    pearson = _correlations(values, pearsonr)
    of_row = iter(totals.tolist())
    scale_of = {one.name: one.scale for one in balances}
    return Balance(
        rows=rows,
        rewards=balances,
        total=RewardBalance(name="score", weight=1.0, **_described(totals)),
        pearson=pearson,
        spearman=_correlations(values, spearmanr),
        remarks=(
            *remarks_on_values(balances, broken, rows, rows - int(has_reward.sum()), rewards.potential_names),
            *remarks_on_weights(balances, pearson),
        ),
        proposal_remarks=tuple(
            remarks_on_proposal(balances, series, *(_described(sums).get("std") for sums in (totals, new_totals)))
        ),
        values=series,
        totals=[next(of_row) if has else None for has in has_reward],
        specs=specs_of(rewards.reward_funcs, specs),
        proposed=tuple(
            _divided(weight, scale_of.get(name)) for name, weight in zip(rewards.names, rewards.weights, strict=True)
        ),
    )


# --- Figures ----------------------------------------------------------------------------------


def _balances(
    values: np.ndarray, weight_of: Mapping[str, float], token_names: Sequence[str], has_reward: np.ndarray
) -> tuple[tuple[RewardBalance, ...], np.ndarray, np.ndarray]:
    """The figures of each reward, and the weighted sums of rows with a reward, with old and with new weights.

    Args:
        values (`(K, B)`): NaN where a reward does not apply.
    """
    weights = np.array(list(weight_of.values()))
    described = [_described(own) for own in values]
    scales = [one["std"] if _spreads(one) else None for one in described]
    proposed = np.array([w if scale is None else w / scale for w, scale in zip(weights, scales, strict=True)])
    shares, totals = _shares(values[:, has_reward], weights)
    new_shares, new_totals = _shares(values[:, has_reward], proposed)
    balances = tuple(
        RewardBalance(
            name=name,
            weight=float(weights[k]),
            **described[k],
            share=shares[k],
            scale=scales[k],
            center=None if scales[k] is None else 0.0 if name in token_names else described[k]["mean"],
            proposed_weight=float(proposed[k]),
            proposed_share=new_shares[k],
        )
        for k, name in enumerate(weight_of)
    )
    return balances, totals, new_totals


def _described(values: np.ndarray) -> dict[str, Any]:
    applying = values[~np.isnan(values)]
    if not len(applying):
        return {"rows": 0}
    with np.errstate(over="ignore", invalid="ignore"):  # values near the largest number there is
        figures = [applying.mean(), applying.std(), *np.quantile(applying, [0, 0.25, 0.5, 0.75, 1])]
    said = [float(value) if math.isfinite(value) else None for value in figures]
    return {"rows": len(applying), **dict(zip(DESCRIBED, said, strict=True))}


def _spreads(described: Mapping[str, Any]) -> bool:
    std = described.get("std")
    if std is None:
        return False
    return bool(std > CONSTANT * max(abs(described["minimum"]), abs(described["maximum"])))


def _shares(values: np.ndarray, weights: np.ndarray) -> tuple[list[float | None], np.ndarray]:
    """The share of each reward, and the weighted sums. `(K,)`, `(B,)`"""
    with np.errstate(over="ignore", invalid="ignore"):
        weighted = np.nan_to_num(values) * weights[:, None]
        totals = weighted.sum(axis=0)
        if not totals.size:
            return [None] * len(weights), totals
        centered = totals - totals.mean()
        variance = float((centered**2).mean())
        told_apart = math.sqrt(variance) > CONSTANT * float(np.abs(totals).max())
        if not (told_apart and math.isfinite(variance)):
            return [None] * len(weights), totals
        return [float((own * centered).mean() / variance) for own in weighted], totals


def _correlations(values: np.ndarray, of: Callable[..., Any]) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(_correlation(one, other, of) for other in values) for one in values)


def _correlation(one: np.ndarray, other: np.ndarray, of: Callable[..., Any]) -> float | None:
    both = ~np.isnan(one) & ~np.isnan(other)
    first, second = one[both], other[both]
    if len(first) < 3 or not all(_spreads(_described(own)) for own in (first, second)):  # of two rows it is 1 or -1
        return None
    return float(of(first, second).statistic)


def _divided(weight: Weight, scale: float | None) -> Weight:
    if scale is None:
        return weight
    if isinstance(weight, WeightSchedule):
        return dataclasses.replace(weight, start=weight.start / scale, end=weight.end / scale)
    return weight if callable(weight) else weight / scale


def _name(name: str) -> Cell:
    return Cell(shortened(name, 28))  # and not a str, in which rich looks for markup


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column(first, overflow="fold", min_width=8)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=" " not in name)
    return table
