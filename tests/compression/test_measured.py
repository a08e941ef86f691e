"""Figures of single models and of two, against numpy and scipy."""

import json
import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from rlhf_recipes.compression.measured import Measured

TOKENS = [2.0, 3.0, 5.0]


def of(nll, **options):
    return Measured({"perplexity": (nll, TOKENS)}, ["perplexity"], **options)


def test_perplexity_is_that_of_all_tokens():
    assert of([2.0, 6.0, 7.0]).figures["perplexity"] == pytest.approx(math.exp(15 / 10))


def test_two_models_are_compared_on_the_same_rows():
    quotient = of([2.0, 6.0, 7.0]).against(of([1.0, 5.0, 6.0]))
    assert quotient["perplexity"] == pytest.approx(math.exp(3 / 10))
    low, high = quotient["perplexity_ci95"]
    assert low < quotient["perplexity"] < high


def test_the_interval_of_a_difference_of_means_is_about_students():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 400))
    ones = [1.0] * 400
    pair = [Measured({"log_loss": (values.tolist(), ones)}) for values in (first, second)]
    expected = ttest_rel(first, second).confidence_interval()
    np.testing.assert_allclose(pair[0].against(pair[1])["log_loss_ci95"], expected, atol=0.01)


def test_a_share_has_an_interval_between_0_and_1():
    figures = Measured({"accuracy": ([1.0] * 6, [1.0] * 6)}, shares=["accuracy"]).figures
    assert figures["accuracy"] == 1
    assert 0.4 < figures["accuracy_ci95"][0] < figures["accuracy_ci95"][1] == 1


def test_rows_that_hang_together_count_as_one():
    values = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    alone = Measured({"log_loss": (values, [1.0] * 6)}).figures["log_loss_ci95"]
    together = Measured({"log_loss": (values, [1.0] * 6)}, units=[["a", "a", "b", "b", "c", "c"]])
    together = together.figures["log_loss_ci95"]
    assert together[1] - together[0] > 1.3 * (alone[1] - alone[0])


def test_other_rows_are_refused():
    with pytest.raises(ValueError, match="measured on other rows"):
        of([1.0, 2.0, 3.0]).against(Measured({"perplexity": ([1.0], [2.0])}, ["perplexity"]))


def test_it_goes_through_json():
    given = of([2.0, 6.0, 7.0], units=[["a", "b", "b"]])
    assert Measured.from_dict(json.loads(json.dumps(given.to_dict()))).figures == given.figures
