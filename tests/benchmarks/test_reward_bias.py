"""The benchmark of bias, on vectors that are made up: one number for the worth of a text, its length, and comedy."""

import argparse
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

PROJECT = Path(__file__).parents[2]
ARGS = argparse.Namespace(passes=4, seed=0, changed_texts=0, samples=50, penalty=10.0)


@pytest.fixture(scope="module")
def benchmark():
    """Imported as `python benchmarks/reward_bias.py` does: its folder comes first on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROJECT / "benchmarks")
        yield importlib.import_module("reward_bias")
    sys.modules.pop("reward_bias", None)


def split(rows, seed):
    generator = np.random.default_rng(seed)
    lengths, comedy = generator.integers(30, 120, size=rows), generator.random(rows) < 0.2
    texts = [
        f"{'funny ' if is_comedy else ''}{seed}-{row} ".ljust(length, "x")
        for row, (length, is_comedy) in enumerate(zip(lengths, comedy, strict=True))
    ]
    return Dataset.from_dict({"completion": texts, "score": (2 * generator.normal(size=rows)).tolist()})


@pytest.fixture(scope="module")
def splits():
    return {
        name: split(rows, seed)
        for seed, (name, rows) in enumerate({"train": 1500, "validation": 400, "test": 400}.items())
    }


@pytest.fixture(scope="module")
def vectors(splits):
    noise = np.random.default_rng(9)
    worth = {
        text: score + 2 * noise.normal()
        for rows in splits.values()
        for text, score in zip(rows["completion"], rows["score"], strict=True)
    }

    def embed(texts):
        return torch.tensor([[worth.get(text, 0.0), len(text) / 30, 1.0 * ("funny" in text), 0.0] for text in texts])

    return embed


def test_length_is_learned_from_biased_pairs_and_mended(benchmark, splits, vectors):
    found = benchmark.length_bias(splits, vectors, ARGS)
    partial = {name: of["report"]["covariates"]["length"]["partial"] for name, of in found.items()}
    assert abs(partial.pop("fair data")) < 0.15
    biased = partial.pop("biased data")
    assert biased > 0.4
    assert len(partial) == 5
    assert all(abs(value) < biased / 2 for value in partial.values()), partial
    assert all(found[name]["accuracy"] > found["biased data"]["accuracy"] for name in partial)


def test_a_group_that_was_left_out_is_scored_too_low_and_mended(benchmark, splits, vectors):
    found = benchmark.group_bias(splits, vectors, ARGS)
    beyond = {name: of["report"]["groups"]["groups"]["comedy"]["beyond_others"] for name, of in found.items()}
    assert beyond["skewed data"] < beyond["fair data"] - 0.3
    assert abs(beyond["penalty on fair rows"] - beyond["fair data"]) < 0.3
    assert beyond["penalty on the skewed rows"] < beyond["penalty on fair rows"] - 0.3
