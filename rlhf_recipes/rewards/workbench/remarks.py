"""What the figures of a balance mean, in sentences."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rlhf_recipes.figures import as_figure, percent
from rlhf_recipes.rewards.base import Series

if TYPE_CHECKING:
    from rlhf_recipes.rewards.workbench.balance import RewardBalance

DUPLICATE = 0.95  # from this |r| on two rewards say the same
OPPOSED = -0.5  # below this r two rewards pull against each other
DOMINANT = 0.9  # from this share on a reward decides nearly alone
MOSTLY = 0.9  # from this share of equal values on the spread of a reward rests on few rows
FEW_ROWS = 30


def remarks_on_values(
    rewards: Sequence["RewardBalance"], broken: Mapping[str, int], rows: int, bare: int, potentials: Sequence[str]
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
                f"{one.name} is {as_figure(one.mean)} for all {one.rows} rows it applies to: it tells no completion "
                "from another, and its weight stays."
            )
    return remarks


def remarks_on_weights(rewards: Sequence["RewardBalance"], pearson: Sequence[Sequence[float | None]]) -> list[str]:
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


def remarks_on_proposal(
    rewards: Sequence["RewardBalance"], values: Mapping[str, Series], before: float | None, after: float | None
) -> list[str]:
    remarks = []
    for one in rewards:
        applying = [value for value in values[one.name] if value is not None]
        value, rows = Counter(applying).most_common(1)[0] if applying else (None, 0)
        if one.scale is not None and one.weight != 0 and rows >= MOSTLY * one.rows:
            remarks.append(
                f"{one.name} is {as_figure(value)} in {percent(rows / one.rows)} of its rows: its spread rests on the "
                f"few others, to which the proposed weight of {as_figure(one.proposed_weight)} gives much influence."
            )
    ratio = after / before if before and after else 1.0
    if not 0.95 < ratio < 1.05:
        remarks.append(
            f"With the proposed weights the score spreads over {as_figure(after)} (standard deviation), now "
            f"{as_figure(before)}. For KL to count as much as before, multiply kl_coef by {as_figure(ratio)}, or "
            "divide all proposed weights by it."
        )
    return remarks


def _remark_on_pair(one: "RewardBalance", other: "RewardBalance", r: float) -> list[str]:
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
