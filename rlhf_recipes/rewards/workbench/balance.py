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
import inspect
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from rich import box
from rich.table import Table
from rich.text import Text as Cell

from rlhf_recipes.figures import COLORS, GRID, INK, MUTED, SERIES, draw_png
from rlhf_recipes.rewards.base import Parts, Series
from rlhf_recipes.rewards.contract.checks import Weight
from rlhf_recipes.rewards.loading import LoadedReward
from rlhf_recipes.rewards.weighted_sum import WeightedSum, WeightSchedule
from rlhf_recipes.texts import Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DUPLICATE = 0.95  # from this |r| on two rewards say the same
OPPOSED = -0.5  # below this r two rewards pull against each other
DOMINANT = 0.9  # from this share on a reward decides nearly alone
MOSTLY = 0.9  # from this share of equal values on the spread of a reward rests on few rows
FEW_ROWS = 30
CONSTANT = 1e-9  # a spread below this part of the largest value is rounding
YAML_WIDTH = 110  # a longer reward is written over several lines


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
        weights (`tuple`): Those of the list, likewise.
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
    weights: tuple[Weight, ...] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """All figures and remarks, for a JSON file; without the rows."""
        return {
            "rows": self.rows,
            "rewards": [dataclasses.asdict(one) for one in self.rewards],
            "total": {
                key: getattr(self.total, key)
                for key in (
                    "rows", "mean", "std", "minimum", "lower_quartile", "median", "upper_quartile", "maximum"
                )
            },
            "pearson": [list(row) for row in self.pearson],
            "spearman": [list(row) for row in self.spearman],
            "remarks": [*self.remarks, *self.proposal_remarks],
        }  # fmt: skip

    def to_yaml(self, scaled: bool = False) -> str:
        """A `reward_funcs:` block for a recipe, with the proposed weights.

        A reward that was handed over as an object is written as its class and settings, or its import path.

        Args:
            scaled (`bool`, *optional*, defaults to `False`):
                Whether to wrap each reward in a `Scale` instead, which takes its mean away too, and keep the weights.
        """
        figures = {one.name: one for one in self.rewards}
        what = "Scales" if scaled else "Weights by spread"
        lines = [f"# {what}, measured on {self.rows} completions.", "reward_funcs:"]
        for spec, old, new in zip(self.specs, self.weights, self.proposed, strict=True):
            own = figures.get(spec["_name"])
            entry = {key: value for key, value in spec.items() if key != "_name"}
            if scaled and own is not None and own.scale is not None and own.center is not None:
                inner = entry if len(entry) > 1 else entry["func"]
                settings = {"reward": inner, "scale": _rounded(own.scale), "center": _rounded(own.center)}
                entry = {"func": "Scale", "args": settings}
            lines += _entry(entry, old if scaled else new)
        return "\n".join(lines) + "\n"

    def table(self, without: Sequence[str] = ()) -> Table:
        """The figures of each reward and of their sum, for rich.

        Args:
            without (`Sequence[str]`, *optional*): Columns to leave out where there is no room, such as `"25%"`.
        """
        shown = {"mean": "mean", "std": "std", "minimum": "min", "lower_quartile": "25%", "median": "50%"}
        shown |= {"upper_quartile": "75%", "maximum": "max"}
        shown = {key: title for key, title in shown.items() if title not in without}
        table = _table("reward", "weight", "rows", *shown.values(), "share")
        for one in self.rewards:
            figures = [figure(getattr(one, key)) for key in shown]
            table.add_row(_name(one.name), figure(one.weight), str(one.rows), *figures, percent(one.share))
        table.add_section()
        figures = [figure(getattr(self.total, key)) for key in shown]
        table.add_row(_name(self.total.name), "", str(self.total.rows), *figures, "", style="bold")
        return table

    def proposal_table(self) -> Table:
        """What each reward decides, now and with the proposed weights, and the settings of a `Scale`; for rich."""
        table = _table("reward", "weight", "share", "proposed weight", "proposed share", "scale", "center")
        for one in self.rewards:
            row = (figure(one.weight), percent(one.share), figure(one.proposed_weight, 4), percent(one.proposed_share))
            table.add_row(_name(one.name), *row, figure(one.scale, 4), figure(one.center, 4))
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

    def plot(self, path: str | Path) -> Path:
        """Draw the correlations, with numbers, beside how the values of each reward and of the sum spread (PNG)."""
        series = self.series()
        several = len(self.rewards) > 1
        count = len(self.rewards)
        side = 2.4 + 0.6 * count if several else 0.0
        size = (side + 5.2, max(side * 0.86, 1.35 * len(series), 3.0))

        def paint(canvas: "Figure") -> None:
            halves = canvas.add_gridspec(1, 2 if several else 1, width_ratios=[side, 5.2] if several else [1])
            if several:
                _paint_correlations(canvas.add_subplot(halves[0]), [one.name for one in self.rewards], self.pearson)
            panels = halves[-1].subgridspec(len(series), 1, hspace=0.08)
            for number, (name, values) in enumerate(series.items()):
                paint_histogram(canvas.add_subplot(panels[number]), name, values)

        return draw_png(path, size, paint)


def measure_balance(
    rewards: WeightedSum,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]],
    **columns: Any,
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
    broken = {
        name: sum(value is not None and not math.isfinite(value) for value in own) for name, own in series.items()
    }
    values = np.array([[math.nan if v is None else v for v in own] for own in series.values()], dtype=float)
    values = np.where(np.isfinite(values), values, math.nan).reshape(len(series), rows)
    has_reward = np.array([any(own[row] is not None for own in parts.values()) for row in range(rows)], dtype=bool)
    weight_of = rewards.weights_at(progress)
    weights = {name: weight_of[name] for name in series}
    balances, totals, new_totals = _balances(values, weights, rewards.token_names, has_reward)
    pearson = _correlations(values, lambda own: own)
    bare = rows - int(has_reward.sum())
    before, after = (_described(sums).get("std") for sums in (totals, new_totals))
    of_row = iter(totals.tolist())
    scale_of = {one.name: one.scale for one in balances}
    return Balance(
        rows=rows,
        rewards=balances,
        total=RewardBalance(name="score", weight=1.0, **_described(totals)),
        pearson=pearson,
        spearman=_correlations(values, _ranks),
        remarks=(
            *_remarks_on_values(balances, broken, rows, bare, rewards.potential_names),
            *_remarks_on_weights(balances, pearson),
        ),
        proposal_remarks=tuple(_remarks_on_proposal(balances, series, before, after)),
        values=series,
        totals=[next(of_row) if has else None for has in has_reward],
        specs=_named_specs(rewards, specs),
        proposed=tuple(
            _divided(weight, scale_of.get(name)) for name, weight in zip(rewards.names, rewards.weights, strict=True)
        ),
        weights=rewards.weights,
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
    names = ("mean", "std", "minimum", "lower_quartile", "median", "upper_quartile", "maximum")
    said = [float(value) if math.isfinite(value) else None for value in figures]
    return {"rows": len(applying), **dict(zip(names, said, strict=True))}


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


def _correlations(values: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(_correlation(one, other, of) for other in values) for one in values)


def _correlation(one: np.ndarray, other: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> float | None:
    both = ~np.isnan(one) & ~np.isnan(other)
    if both.sum() < 3:  # of two rows it is always 1 or -1
        return None
    if not (_spreads(_described(one[both])) and _spreads(_described(other[both]))):
        return None
    first, second = (of(own[both]) for own in (one, other))
    first, second = ((own - own.mean()) / own.std() for own in (first, second))
    return float(np.clip((first * second).mean(), -1.0, 1.0))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Place of each value, from 1; equal values share the mean of their places."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def _divided(weight: Weight, scale: float | None) -> Weight:
    if scale is None:
        return weight
    if isinstance(weight, WeightSchedule):
        return dataclasses.replace(weight, start=weight.start / scale, end=weight.end / scale)
    return weight if callable(weight) else weight / scale


# --- In words ---------------------------------------------------------------------------------


def _remarks_on_values(
    rewards: Sequence[RewardBalance], broken: Mapping[str, int], rows: int, bare: int, potentials: Sequence[str]
) -> list[str]:
    remarks = []
    if rows < FEW_ROWS:
        remarks.append(f"The figures rest on {_count(rows, 'completion')} alone: they are rough.")
    if bare:
        remarks.append(f"{_count(bare, 'row')} of {rows} got no reward at all; a run would stop at such a row.")
    for name in potentials:
        remarks.append(f"{name} is a potential, which shapes and adds nothing to the sum: it is left out here.")
    for one in rewards:
        if broken[one.name]:
            remarks.append(f"{one.name} gave NaN or infinity for {_count(broken[one.name], 'row')}, left out here.")
        if not one.rows:
            remarks.append(f"{one.name} applies to none of the {rows} rows, so that nothing can be said of it.")
        elif one.std is None:
            remarks.append(f"The values of {one.name} are too large for their spread to be worked out.")
        elif one.scale is None and one.rows == 1:
            remarks.append(f"{one.name} applies to a single row, which has no spread: its weight stays.")
        elif one.scale is None:
            remarks.append(
                f"{one.name} is {figure(one.mean)} for all {one.rows} rows it applies to: it tells no completion from "
                "another, and its weight stays."
            )
    return remarks


def _remarks_on_weights(rewards: Sequence[RewardBalance], pearson: Sequence[Sequence[float | None]]) -> list[str]:
    remarks = []
    rewarded = [one for one in rewards if one.weight != 0]
    for one in rewarded:
        if len(rewarded) > 1 and one.share is not None and one.share >= DOMINANT:
            remarks.append(f"{one.name} makes {percent(one.share)} of what tells completions apart: nearly all of it.")
    for k, one in enumerate(rewards):
        for other, r in zip(rewards[k + 1 :], pearson[k][k + 1 :], strict=True):
            if r is not None:
                remarks += _remark_on_pair(one, other, r)
    return remarks


def _remarks_on_proposal(
    rewards: Sequence[RewardBalance], values: Mapping[str, Series], before: float | None, after: float | None
) -> list[str]:
    remarks = []
    for one in rewards:
        applying = [value for value in values[one.name] if value is not None]
        value, rows = Counter(applying).most_common(1)[0] if applying else (None, 0)
        if one.scale is not None and one.weight != 0 and rows >= MOSTLY * one.rows:
            remarks.append(
                f"{one.name} is {figure(value)} in {percent(rows / one.rows)} of its rows: its spread rests on the "
                f"few others, to which the proposed weight of {figure(one.proposed_weight)} gives much influence."
            )
    ratio = after / before if before and after else 1.0
    if not 0.95 < ratio < 1.05:
        remarks.append(
            f"With the proposed weights the score spreads over {figure(after)} (standard deviation), now "
            f"{figure(before)}. For KL to count as much as before, multiply kl_coef by {figure(ratio)}, or divide all "
            "proposed weights by it."
        )
    return remarks


def _remark_on_pair(one: RewardBalance, other: RewardBalance, r: float) -> list[str]:
    pair = f"{one.name} and {other.name}"
    # A penalty that rises with a reward works against it.
    against = r * math.copysign(1.0, one.weight) * math.copysign(1.0, other.weight)
    both_count = one.weight != 0 and other.weight != 0
    if against < OPPOSED and both_count:
        return [f"{pair} pull against each other (r = {against:+.2f} as weighted): what one pays for costs the other."]
    if r > DUPLICATE:
        return [f"{pair} say nearly the same (r = {r:+.2f}): one of them is enough, or their weights add up."]
    if r < -DUPLICATE:
        return [f"{pair} say nearly the same, one turned around (r = {r:+.2f}): one of them is enough."]
    return [f"{pair} go against each other (r = {r:+.2f})."] if r < OPPOSED and not both_count else []


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def figure(value: float | None, digits: int = 3) -> str:
    """A number in a table; `-` for one that cannot be said."""
    if value is None:
        return "-"
    if not value or abs(value) < 1e-12:
        return "0"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    """A share in a table; `-` for one that cannot be said."""
    return "-" if share is None else f"{100 * share:.0f}%".replace("-0%", "0%")


def _name(name: str) -> Cell:
    return Cell(shortened(name, 28))  # and not a str, in which rich looks for markup


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column(first, overflow="fold", min_width=8)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=" " not in name)
    return table


# --- As YAML ----------------------------------------------------------------------------------


def _entry(entry: Mapping[str, Any], weight: Weight) -> list[str]:
    unsaid = "   # made in Python: say where it is, as file.py:name" if _is_nowhere(entry["func"]) else ""
    if isinstance(weight, WeightSchedule):
        written: Any = {
            item.name: _rounded(value) if isinstance(value := getattr(weight, item.name), float) else value
            for item in dataclasses.fields(weight)
            if getattr(weight, item.name) != item.default
        }
    elif callable(weight):
        written, unsaid = None, "   # its weight is a Python function, which YAML cannot say"
    else:
        written = _rounded(weight)
    whole = {**entry, **({} if written is None else {"weight": written})}
    flow = _dump(whole, default_flow_style=True).strip()
    if len(flow) + 4 <= YAML_WIDTH:
        return [f"  - {flow}{unsaid}"]
    block = [f"  {line}" for line in _dump([whole], default_flow_style=False).splitlines()]
    return [block[0] + unsaid, *block[1:]]


def _is_nowhere(func: str) -> bool:
    """Whether it is a function that no other program could import."""
    return ":" in func and (func.startswith("__main__:") or "<" in func)


def _dump(value: Any, default_flow_style: bool) -> str:
    text: str = yaml.safe_dump(
        value, default_flow_style=default_flow_style, sort_keys=False, allow_unicode=True, width=10_000
    )
    return text


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _named_specs(
    rewards: WeightedSum, specs: Sequence[str | Mapping[str, Any]] | None
) -> tuple[Mapping[str, Any], ...]:
    """What a YAML file says of each reward but its weight, and under `_name` what it is called."""
    given = [_spec_of(func) for func in rewards.reward_funcs] if specs is None else list(specs)
    as_mappings = [_plain({"func": spec} if isinstance(spec, str) else spec) for spec in given]
    return tuple(
        {**{key: value for key, value in spec.items() if key != "weight"}, "_name": name}
        for spec, name in zip(as_mappings, rewards.names, strict=True)
    )


def _plain(spec: Any) -> Any:
    """Without classes of our own, which YAML does not know."""
    return json.loads(json.dumps(spec, default=str))


def _spec_of(func: Any) -> dict[str, Any]:
    """A reward that was made in Python, as a YAML file would say it."""
    if isinstance(func, LoadedReward):
        target, name, args = func.__reduce__()[1][:3]
        spec = {"func": target} if isinstance(target, str) else _spec_of(target)
        return spec | ({"name": name} if name else {}) | ({"args": _said(args)} if args else {})
    if inspect.isroutine(func) or inspect.isclass(func):
        return {"func": f"{func.__module__}:{func.__qualname__}"}
    made = type(func)
    here = made.__module__.startswith("rlhf_recipes.")
    spec = {"func": made.__qualname__ if here else f"{made.__module__}:{made.__qualname__}"}
    settings = _settings(func)
    if isinstance(settings.get("name"), str):
        spec["name"] = settings.pop("name")
    return spec | ({"args": settings} if settings else {})


def _settings(func: Any) -> dict[str, Any]:
    """What it was made with, where that is not the default."""
    if dataclasses.is_dataclass(func):
        defaults = {
            item.name: item.default_factory() if callable(item.default_factory) else item.default
            for item in dataclasses.fields(func)
        }
        given = {name: getattr(func, name) for name in defaults}
    else:
        made = func.__reduce_ex__(2)
        if made[0] is not type(func):
            return {}
        bound = inspect.signature(type(func)).bind(*made[1])
        defaults = {name: parameter.default for name, parameter in bound.signature.parameters.items()}
        given = dict(bound.arguments)
    return {
        name: _said(value) for name, value in given.items() if value is not defaults[name] and value != defaults[name]
    }


def _said(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _said(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_said(inner) for inner in value]
    if callable(value):
        spec = _spec_of(value)
        return spec["func"] if len(spec) == 1 else spec
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def paint_histogram(axes: "Axes", name: str, values: Series) -> None:
    """How many rows have which value, with the mean as an upright line; in words where there is nothing to draw."""
    from matplotlib.ticker import MaxNLocator

    finite = np.array([value for value in values if value is not None and math.isfinite(value)])
    axes.set_title(shortened(name, 24), loc="left", fontsize=10.5, fontweight="bold")
    axes.grid(visible=False, axis="x")
    if not len(finite):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "applies to no row", transform=axes.transAxes, ha="center", va="center")
        return
    said = f"mean {figure(float(finite.mean()))}, std {figure(float(finite.std()))}"
    axes.set_title(said, loc="right", fontsize=9.5, color=COLORS[MUTED])
    edges, exact = bins(finite, 24)
    if exact is None:
        axes.hist(finite, bins=edges.tolist(), color=COLORS[SERIES[0]], alpha=0.6)
    else:
        counts, _ = np.histogram(finite, edges)
        gap = float(np.diff(exact).min()) if len(exact) > 1 else 1.0
        axes.bar(exact, counts, width=0.5 * gap, color=COLORS[SERIES[0]], alpha=0.6)
        axes.set_xlim(exact[0] - 0.6 * gap, exact[-1] + 0.6 * gap)
    axes.axvline(float(finite.mean()), color=COLORS[SERIES[1]], linewidth=1.8)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    if exact is not None and len(exact) <= 3:
        axes.set_xticks(exact, [figure(value) for value in exact])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


def bins(values: np.ndarray, count: int) -> tuple[np.ndarray, list[float] | None]:
    """Edges of about `count` bins at round numbers; and the values themselves where there are no more than 8.

    Then there is a bin around each.
    """
    from matplotlib.ticker import MaxNLocator

    distinct = np.unique(values)
    if len(distinct) <= 8:
        gap = float(np.diff(distinct).min()) if len(distinct) > 1 else max(abs(float(distinct[0])), 1.0) * 0.2
        middles = (distinct[1:] + distinct[:-1]) / 2
        edges = [distinct[0] - gap / 2, *middles, distinct[-1] + gap / 2]
        return np.array(edges, dtype=float), [float(value) for value in distinct]
    locator = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
    return np.asarray(locator.tick_values(float(distinct[0]), float(distinct[-1])), dtype=float), None


def shortened(name: str, most: int) -> str:
    """A long name without its end."""
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _paint_correlations(axes: "Axes", names: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    size = len(names)
    colors = LinearSegmentedColormap.from_list("both", [COLORS[SERIES[1]], "#ffffff", COLORS[SERIES[0]]])
    axes.set_facecolor(COLORS[GRID])  # seen where there is no correlation
    numbers = np.array([[math.nan if r is None else r for r in row] for row in matrix], dtype=float)
    axes.imshow(np.ma.masked_invalid(numbers), cmap=colors, vmin=-1, vmax=1)
    for row in range(size):
        for column in range(size):
            r = numbers[row, column]
            text = "–" if math.isnan(r) else f"{r:.2f}"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=10,
                color="#ffffff" if abs(r) > 0.6 else COLORS[INK],
            )  # fmt: skip
    labels = [shortened(name, 20) for name in names]
    axes.set_xticks(range(size), labels, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), labels)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_anchor("N")
    axes.set_title("Pearson's correlation", loc="left", fontsize=10.5, fontweight="bold")
