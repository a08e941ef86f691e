"""What the log of a PPO run shows of reward hacking: the score rises, and what it was meant to measure does not.

Four things are looked at:

1. held-out rewards, those with weight 0, against the score (Goodhart's law; measured in arXiv 2210.10760);
2. length, where the score goes with it, and collapse of the length;
3. repetition within completions;
4. KL: more than a budget, or growing while the score no longer does.

The figures of a rollout are means over some dozens of episodes, and noisy. So a change counts only when it is several
standard errors large. The noise of a series is estimated from the differences between neighbouring rollouts (von
Neumann, 1941): there a trend, straight or bent, adds next to nothing. A finding is a function of the log alone, so a
resumed run finds what the uninterrupted one would have found, and finds it once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIRMED = 3.5  # standard errors of a change that is taken for real; of 4,300 changes by chance one is as large
BOUND = 2.33  # standard errors from an estimate to its bound, with 99% confidence


@dataclass(frozen=True)
class Limits:
    """What counts as a finding.

    Args:
        window (`int`, *optional*, defaults to 12):
            A change is looked for since the first rollout, and over this many of the last, twice as many, four times
            and so on: an exploit may take hold late, and fast or slowly.
        min_rollouts (`int`, *optional*, defaults to 8):
            Before that nothing is said.
        held_out_share (`float`, *optional*, defaults to 0.2):
            A held-out reward has to rise by this share of the score's rise, each in standard deviations over
            completions. Where two rewards correlate by rho, choosing completions by one raises the other by rho times
            as many standard deviations (the line of regression). So 0.2 asks for no more than a correlation of 0.2.
        length_growth (`float`, *optional*, defaults to 1.25), length_collapse (`float`, *optional*, defaults to 0.5):
            Length of the last five rollouts, divided by that of the first five, from which on growth is told (if the
            score goes with length) and below which a collapse is.
        length_correlation (`float`, *optional*, defaults to 0.15):
            Correlation of score and length that growth must come with.
        repetition (`float`, *optional*, defaults to 0.05):
            Rise of the share of repeated pairs of tokens.
        kl_per_token (`float`, *optional*, defaults to 1.0):
            Budget in nats. At 1 nat a token the policy's choices are e times likelier than under the reference (as a
            geometric mean). 20 tokens make 20 nats: as much as the best of n completions has, `log n - (n - 1) / n`,
            at n = 1.3 billion.
        gain_share (`float`, *optional*, defaults to 0.2):
            Score per nat over the second half of the run, at least, as a share of what it was over the first. A score
            that goes with the square root of KL keeps 0.4 when KL doubles.
    """

    window: int = 12
    min_rollouts: int = 8
    held_out_share: float = 0.2
    length_growth: float = 1.25
    length_collapse: float = 0.5
    length_correlation: float = 0.15
    repetition: float = 0.05
    kl_per_token: float = 1.0
    gain_share: float = 0.2


@dataclass(frozen=True)
class Finding:
    """Something that a history shows.

    Attributes:
        kind (`str`): `"held-out"`, `"length"`, `"repetition"` or `"kl"`.
        about (`str`): Which of its kind: the held-out reward's name, `"growth"` or `"collapse"`, `"budget"` or
            `"gain"`; empty where there is one only. A monitor speaks once of each kind and what it is about.
        since (`int`): The rollout, counted from 1, with which it was first to be seen.
        text (`str`): What is seen, with its figures, and what to do.
    """

    kind: str
    about: str
    since: int
    text: str

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.about


# ---- statistics


def noise(values: np.ndarray) -> float:
    """Standard deviation around a trend, from the differences between neighbours; NaN for fewer than three values.

    The variance of a difference is twice that of a value. A straight trend shifts all differences alike, so their mean
    is taken away. Of n independent values, the squares that are left sum up to `2 n (n - 2) / (n - 1)` times the
    variance, on average.
    """
    count = len(values)
    if count < 3:
        return math.nan
    differences = np.diff(values)
    squares = float(((differences - differences.mean()) ** 2).sum())
    return math.sqrt(squares * (count - 1) / (2 * count * (count - 2)))


def quantile(z: float, count: int) -> float:
    """Student's t in place of a normal `z`, for a noise that was estimated from `count` values.

    The Cornish-Fisher expansion to the second order; the degrees of freedom are those of von Neumann's estimator.
    """
    freedom = 2 * (count - 1) ** 2 / (3 * count - 4)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


@dataclass(frozen=True)
class Change:
    """What a series has gained over a window, by the line of least squares, and the standard error of that."""

    size: float
    error: float
    count: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Change":
        count = len(values)
        if count < 3:
            return cls(math.nan, math.nan, count)
        time = np.arange(count) - (count - 1) / 2
        spread = float((time**2).sum())
        size = (count - 1) * float(time @ values) / spread
        return cls(size, (count - 1) * noise(values) / math.sqrt(spread), count)

    def margin(self, z: float) -> float:
        """How far a bound lies from the size."""
        return quantile(z, self.count) * self.error

    @property
    def rises(self) -> bool:
        return self.size > self.margin(CONFIRMED)

    @property
    def falls(self) -> bool:
        return self.size < -self.margin(CONFIRMED)


def shift(values: np.ndarray, size: int = 5) -> tuple[float, float, bool]:
    """Mean of the first and of the last `size` values, and whether they differ by more than chance."""
    size = min(size, len(values) // 2)
    if size < 1:
        return math.nan, math.nan, False
    first, last = float(values[:size].mean()), float(values[-size:].mean())
    margin = quantile(CONFIRMED, len(values)) * noise(values) * math.sqrt(2 / size)
    return first, last, abs(last - first) > margin


# ---- what a history shows


class Curves:
    """The series of a history, one number for each rollout; NaN where one is missing.

    Args:
        history (`Sequence[Mapping]`):
            `trainer.state.log_history`. Entries without `objective/scores` (evaluations, the summary) are left out.
        watched (`Sequence[str]`): Names of held-out rewards, which should rise with the score.
        holding (`Sequence[str]`): Names of held-out rewards that should not fall.
    """

    def __init__(
        self,
        history: Sequence[Mapping[str, Any]],
        watched: Sequence[str] = (),
        holding: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> None:
        entries = [entry for entry in history if "objective/scores" in entry]

        def series(name: str) -> np.ndarray:
            return np.array([entry.get(name, math.nan) for entry in entries], dtype=float)

        self.limits = limits or Limits()
        self.score, self.kl = series("objective/scores"), series("objective/kl")
        self.episode = series("episode")
        self.length = series("rollout/completion_length")
        self.correlation, self.repetition = series("rollout/length_correlation"), series("rollout/repetition")
        self.held_out = {name: series(f"reward/{name}") for name in (*watched, *holding)}
        self.score_std = series("objective/scores_std")
        self.held_out_std = {name: series(f"reward/{name}/std") for name in self.held_out}
        self.holding = set(holding)

    def __len__(self) -> int:
        return len(self.score)

    def check(self, count: int) -> list[Finding]:
        """What the first `count` rollouts show, judged at the last of them."""
        if count < self.limits.min_rollouts:
            return []
        found: list[Finding | None] = [self._held_out(name, count) for name in self.held_out]
        found += [self._length(count), self._repetition(count), self._budget(count), self._gain(count)]
        return [finding for finding in found if finding is not None]

    def first(self, finding: Finding) -> bool:
        """Whether a finding was not there at any rollout before."""
        earlier = range(finding.since - 1, self.limits.min_rollouts - 1, -1)
        return all(finding.key not in {f.key for f in self.check(count)} for count in earlier)

    def windows(self, count: int) -> Iterator[slice]:
        """All rollouts so far, and the last ones."""
        yield slice(0, count)
        size = self.limits.window
        while size < count:
            yield slice(count - size, count)
            size *= 2

    def _when(self, part: slice) -> str:
        first, last = self.episode[part.start], self.episode[part.stop - 1]
        episodes = "" if math.isnan(first + last) else f" (episodes {first:.0f} to {last:.0f})"
        return f"rollouts {part.start + 1} to {part.stop}{episodes}"

    def _held_out(self, name: str, count: int) -> Finding | None:
        there = ~np.isnan(self.held_out[name][:count]) & ~np.isnan(self.score[:count])
        if there.sum() < self.limits.min_rollouts or not Change.of(self.score[:count][there]).rises:
            return None
        for part in self.windows(count):
            kept = there[part]
            score, held_out = self.score[part][kept], self.held_out[name][part][kept]
            if kept.sum() < self.limits.min_rollouts:
                continue
            ours, theirs = Change.of(score), Change.of(held_out)
            said = self._stays_behind(name, count, ours, theirs)
            if said is None:
                continue
            text = (
                f"The score does not measure what {name} measures. Over {self._when(part)} the score went "
                f"{_from_to(score)}, and {name}, which is watched and not rewarded, {_from_to(held_out)}: {said}. "
                "Read some completions. If they are worse than the score says, stop, and reward what is missing, too "
                f"(a weight for {name}), or raise kl_coef."
            )
            return Finding("held-out", name, count, text)
        return None

    def _stays_behind(self, name: str, count: int, ours: Change, theirs: Change) -> str | None:
        if theirs.falls and not ours.falls:
            return f"a fall of {-theirs.size:.3g}, {_errors(theirs)}"
        if name in self.holding or not ours.rises:
            return None
        at_most, wanted = theirs.size + theirs.margin(BOUND), self._least_rise(name, count, ours)
        if not at_most < wanted:  # nor where either is NaN
            return None
        return f"with 99% confidence a rise of {at_most:.3g} at most, where {wanted:.3g} is the least to be expected"

    def _least_rise(self, name: str, count: int, ours: Change) -> float:
        """What a held-out reward has to gain while the score gains `ours`: `held_out_share` as many of its units.

        The unit is the standard deviation over completions, as it was in the beginning: an exploited score has none
        left. Where it is not logged, the noise of the rollouts' means takes its place. Then units are chosen against
        an alarm: the larger one for the score, the smaller one for the other.
        """
        early = slice(0, min(count, self.limits.window))
        unit, other = _mean(self.score_std[early]), _mean(self.held_out_std[name][early])
        if math.isnan(unit + other):
            values, so_far = self.held_out[name], slice(0, count)
            unit = max(_noise(self.score[part]) for part in (early, so_far))
            other = min(_noise(values[part]) for part in (early, so_far))
        return self.limits.held_out_share * ours.size / unit * other if unit > 0 else math.nan

    def _length(self, count: int) -> Finding | None:
        length = self.length[:count]
        first, last, differs = shift(length)
        if not differs:
            return None
        part = slice(0, count)
        if last < self.limits.length_collapse * first:
            text = (
                f"Completions have become short: {first:.3g} tokens in the first rollouts, {last:.3g} in the last "
                f"({self._when(part)}). Read some. If they break off, reward what a whole answer has "
                "(EndsWithSentence, LengthWindow), or raise kl_coef."
            )
            return Finding("length", "collapse", count, text)
        correlation = self.correlation[max(0, count - self.limits.window) : count]
        correlation = correlation[~np.isnan(correlation)]
        if last < self.limits.length_growth * first or len(correlation) < self.limits.min_rollouts:
            return None
        mean, error = float(correlation.mean()), noise(correlation) / math.sqrt(len(correlation))
        if mean - quantile(BOUND, len(correlation)) * error < 0 or mean < self.limits.length_correlation:
            return None
        text = (
            f"Completions grow, and long ones score higher: {first:.3g} tokens in the first rollouts, {last:.3g} in "
            f"the last ({self._when(part)}); the correlation of score and length is {mean:.2f} over the last "
            f"{len(correlation)}. If the length is not what you want, bound it (LengthWindow), or take a reward that "
            "does not pay for it."
        )
        return Finding("length", "growth", count, text)

    def _repetition(self, count: int) -> Finding | None:
        first, last, differs = shift(self.repetition[:count])
        if not differs or last - first < self.limits.repetition:
            return None
        text = (
            f"Completions repeat themselves: {first:.1%} of the pairs of neighbouring tokens had been there "
            f"before in the first rollouts, {last:.1%} in the last ({self._when(slice(0, count))}). Read some. Give "
            "Repetition, whose values are penalties, a weight above 0, or raise kl_coef."
        )
        return Finding("repetition", "", count, text)

    def _budget(self, count: int) -> Finding | None:
        kl, length = float(self.kl[count - 3 : count].mean()), float(self.length[count - 3 : count].mean())
        if not kl > self.limits.kl_per_token * length:
            return None
        text = (
            f"The policy is far from the reference: {kl:.3g} nats in a completion, {kl / length:.2f} for each of its "
            f"{length:.3g} tokens (budget {self.limits.kl_per_token:g}; rollouts {count - 2} to {count}). What the "
            "reward models were trained on looks like the reference's texts; they may be wrong so far away. Raise "
            "kl_coef, or set kl_target."
        )
        return Finding("kl", "budget", count, text)

    def _gain(self, count: int) -> Finding | None:
        start = (
            count - 2 * self.limits.window
        )  # a gain near 0 takes more rollouts to be sure of than one that is large
        if start < self.limits.min_rollouts:
            return None
        before, part = slice(0, start), slice(start, count)
        ours, nats = Change.of(self.score[part]), Change.of(self.kl[part])
        earlier, spent = Change.of(self.score[before]), float(self.kl[start - 3 : start].mean())
        if not (nats.rises and nats.size > 0.1 * spent > 0 and Change.of(self.score[:count]).rises):
            return None
        rate = earlier.size / spent
        at_most = (ours.size + ours.margin(BOUND)) / nats.size
        if not (earlier.rises and at_most < self.limits.gain_share * rate):
            return None
        text = (
            f"KL grows, and buys next to nothing: over {self._when(part)} it went {_from_to(self.kl[part])} nats, and "
            f"the score {_from_to(self.score[part])}: {max(at_most, 0):.2g} a nat at most, after {rate:.2g} a nat "
            "before. What there was to gain is gained. Stop here, or raise kl_coef."
        )
        return Finding("kl", "gain", count, text)


def _noise(values: np.ndarray) -> float:
    return noise(values[~np.isnan(values)])


def _mean(values: np.ndarray) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else math.nan


def _from_to(values: np.ndarray) -> str:
    """By the means of three rollouts at either end, which a single one does not decide."""
    return f"from {values[:3].mean():.3g} to {values[-3:].mean():.3g}"


def _errors(change: Change) -> str:
    return f"{abs(change.size) / change.error:.1f} standard errors" if change.error > 0 else "without any noise"


def findings(
    history: Sequence[Mapping[str, Any]],
    watched: Sequence[str] = (),
    holding: Sequence[str] = (),
    limits: Limits | None = None,
) -> list[Finding]:
    """What a monitor would have said in a run with this history, in the order in which it would have said it.

    Args:
        history (`Sequence[Mapping]`):
            `trainer.state.log_history` or `log_history.json`, an entry for each rollout. Used are `objective/scores`,
            `objective/scores_std`, `objective/kl`, `episode`, `reward/<name>`, `reward/<name>/std`,
            `rollout/completion_length`, `rollout/length_correlation` and `rollout/repetition`. Where one is missing,
            what needs it is not looked at.
        watched (`Sequence[str]`, *optional*):
            Rewards with weight 0 that should rise with the score, such as another reward model.
        holding (`Sequence[str]`, *optional*):
            Rewards with weight 0 that should not fall, such as rules of form.
        limits ([`Limits`], *optional*): What counts.
    """
    curves = Curves(history, watched, holding, limits)
    found: dict[tuple[str, str], Finding] = {}
    for count in range(len(curves) + 1):
        for finding in curves.check(count):
            found.setdefault(finding.key, finding)
    return list(found.values())
