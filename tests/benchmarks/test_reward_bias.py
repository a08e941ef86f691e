"""The benchmark's own parts, on vectors that are made up: a dimension for worth, one for length, one for comedy."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
reward_bias = pytest.importorskip("reward_bias")

ARGS = argparse.Namespace(passes=4, seed=0, changed_texts=0, samples=50, penalty=10.0)


def split(rows, seed):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(10, 100, size=rows)
    comedy = generator.random(rows) < 0.2
    texts = [
        f"{'funny ' if c else ''}{seed}-{row} ".ljust(20 + n, "x") for row, (n, c) in enumerate(zip(lengths, comedy))
    ]
    return Dataset.from_dict({"completion": texts, "score": (2 * generator.normal(size=rows)).tolist()})


class Vectors:
    def __init__(self, splits):
        self.known = {}
        for rows in splits.values():
            for text, score in zip(rows["completion"], rows["score"], strict=True):
                noise = torch.randn(1, generator=torch.Generator().manual_seed(len(self.known)))
                self.known[text] = torch.tensor([score + 2 * noise, len(text) / 30, 1.0 * ("funny" in text), 0.0])

    def __call__(self, texts):
        return torch.stack([self.known[text] for text in texts])


@pytest.fixture(scope="module")
def splits():
    return {
        name: split(rows, seed)
        for seed, (name, rows) in enumerate((("train", 1500), ("validation", 400), ("test", 400)))
    }


def test_length_is_learned_from_biased_pairs_and_mended(splits):
    found = reward_bias.length_bias(splits, Vectors(splits), ARGS)
    partial = {name: of["report"]["covariates"]["length"]["partial"] for name, of in found.items()}
    assert abs(partial.pop("fair data")) < 0.15
    biased = partial.pop("biased data")
    assert biased > 0.4
    assert all(abs(value) < biased / 2 for value in partial.values()), partial
    assert all(found[name]["accuracy"] > found["biased data"]["accuracy"] for name in partial)


def test_a_group_that_was_left_out_is_scored_too_low_and_mended(splits):
    found = reward_bias.group_bias(splits, Vectors(splits), ARGS)
    beyond = {name: of["report"]["groups"]["groups"]["comedy"]["beyond_others"] for name, of in found.items()}
    assert beyond["skewed data"] < beyond["fair data"] - 0.3
    assert abs(beyond["group penalty"] - beyond["fair data"]) < 0.3
