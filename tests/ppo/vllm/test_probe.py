"""Whether an adapter is used, told from log-probabilities that both sides round in their own way."""

import contextlib

import numpy as np
import pytest
import torch

from rlhf_recipes.ppo.vllm.probe import LIMIT, LIMIT_IN_HALF_PRECISION, Compared
from tests.ppo.helpers import lora_policy
from tests.ppo.vllm.double import Double, served
from tests.ppo.vllm.test_generator import generator_of

TOKENS = 192


def compared(dice, arrives, effect, noise):
    """A server with which the given share of an adapter's effect arrives; both are rounded at random."""
    of_base = torch.from_numpy(-dice.exponential(2.0, TOKENS))
    ours = of_base + torch.from_numpy(dice.normal(0, effect, TOKENS))
    said = of_base + arrives * (ours - of_base) + torch.from_numpy(dice.normal(0, noise, TOKENS))
    return Compared(said, ours, ours, of_base)


def test_the_share_that_arrives_is_the_slope_of_least_squares_through_the_origin():
    told = compared(np.random.default_rng(0), arrives=0.3, effect=0.2, noise=0.05)
    effect, seen = (told.ours - told.of_base).numpy(), (told.said - told.of_base).numpy()
    (slope,), *_ = np.linalg.lstsq(effect[:, None], seen, rcond=None)
    assert told.share() == pytest.approx(slope, rel=1e-12)


@pytest.mark.parametrize(("effect", "noise"), [(1e-4, 1e-5), (0.1, 0.05), (0.5, 0.1), (2.0, 0.0)])
def test_an_adapter_that_is_not_used_is_seen_and_one_that_is_used_is_not_accused(effect, noise):
    dice = np.random.default_rng(0)
    assert all(compared(dice, 0.0, effect, noise).is_ignored() for _ in range(200))
    assert not any(compared(dice, 1.0, effect, noise).is_ignored() for _ in range(200))


def test_an_effect_below_the_rounding_accuses_nobody():
    dice = np.random.default_rng(0)
    accused = sum(compared(dice, arrives, 0.002, 0.05).is_ignored() for arrives in (0.0, 1.0) for _ in range(1000))
    assert accused <= 2
    same = compared(dice, 0.0, 0.0, 0.05)
    assert not same.is_ignored()
    assert not Compared(same.said, same.ours, same.ours, None).is_ignored()


@pytest.mark.parametrize(("rounds", "off", "refused"), [
    (False, 0.5 * LIMIT, False), (False, 2 * LIMIT, True),
    (True, 0.5 * LIMIT_IN_HALF_PRECISION, False), (True, 2 * LIMIT_IN_HALF_PRECISION, True),
])  # fmt: skip
def test_the_bound_is_that_of_the_precision(tmp_path, monkeypatch, rounds, off, refused):
    double = Double()
    honest = double.completions

    def rounded(body):
        code, answer = honest(body)
        told = answer["choices"][0]["logprobs"]
        told["token_logprobs"] = [logprob - off for logprob in told["token_logprobs"]]
        return code, answer

    monkeypatch.setattr(double, "completions", rounded)
    with served(double) as url:
        generator = generator_of(url, tmp_path, rounds=rounds)
        said = r"differ by .* nats in the mean, and at most 0\.(001|1) is rounding"
        with pytest.raises(ValueError, match=said) if refused else contextlib.nullcontext():
            generator.sync(lora_policy())
