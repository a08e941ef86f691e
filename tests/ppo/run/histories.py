"""Made-up logs of PPO runs."""

import math

import numpy as np

EPISODES = 64  # in a rollout; standard deviations over completions are 1, so a mean has a noise of 1/8


def rising(count, size=1.5, pace=12):
    """Fast at first, then flat, as most scores do."""
    return size * (1 - np.exp(-np.arange(count) / pace))


def history(count=40, seed=0, std=True, **curves):
    """A log. Figures that are not given stay where they are; all but the deviations get noise, some of it common.

    Rewards that rise together also vary together: half of the variance of `judge` is the score's.
    """
    dice = np.random.default_rng(seed)
    shared = dice.normal(size=count)

    def noisy(curve, size, common=0.0):
        return np.asarray(curve) + size * (common * shared + math.sqrt(1 - common**2) * dice.normal(size=count))

    flat = np.zeros(count)
    series = {
        "objective/scores": noisy(curves.get("score", flat), 1 / 8, common=1.0),
        "reward/judge": noisy(curves.get("judge", flat), 1 / 8, common=0.7),
        "reward/prose": np.clip(noisy(0.9 + curves.get("prose", flat), 0.03), 0, 1),
        "objective/kl": noisy(curves.get("kl", flat + 5), 0.3),
        "rollout/completion_length": noisy(curves.get("length", flat + 40), 2),
        "rollout/length_correlation": noisy(curves.get("correlation", flat), 1 / 8),
        "rollout/repetition": np.clip(noisy(curves.get("repetition", flat + 0.02), 0.006), 0, 1),
    }
    if std:
        series |= {"objective/scores_std": flat + 1, "reward/judge/std": flat + 1}
    return [
        {"episode": EPISODES * (row + 1), "loss": 0.1} | {name: float(values[row]) for name, values in series.items()}
        for row in range(count)
    ]
