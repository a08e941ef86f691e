"""Texts of which it is known what each word is worth."""

import numpy as np

from rlhf_recipes.reward_modeling.linear.features import Keywords

VALUES = {"good": 1.0, "great": 2.0, "bad": -1.0, "awful": -2.0, "film": 0.0, "plot": 0.0, "cast": 0.0}
COUNTS = {"BagOfWords": {"weighting": "count", "min_texts": 1}}
GOOD_AND_BAD = [Keywords(("good",), "good"), Keywords(("bad",), "bad")]


def rated(count=200, seed=0, noise=0.0):
    """Texts of four words whose rating is the sum of what the words are worth, and empty prompts."""
    generator = np.random.default_rng(seed)
    rows = [generator.choice(list(VALUES), size=4) for _ in range(count)]
    ratings = np.array([sum(VALUES[word] for word in row) for row in rows]) + noise * generator.normal(size=count)
    return [""] * count, [" ".join(row) for row in rows], ratings


def pairs(count=200, seed=0):
    _, texts, ratings = rated(2 * count, seed)
    chosen, rejected = [], []
    for first, second in zip(range(count), range(count, 2 * count), strict=True):
        if ratings[first] != ratings[second]:
            better = ratings[first] > ratings[second]
            chosen.append(texts[first if better else second])
            rejected.append(texts[second if better else first])
    return [""] * len(chosen), chosen, rejected
