"""Best of n: the exact average over subsets, how far it is from the policy, and the curve with its intervals."""

import itertools
import math

import numpy as np
import pytest

from rlhf_recipes.reward_modeling.uses.best_of_n import (
    best_of_n_curve,
    choice_probabilities,
    curve_metrics,
    curve_table,
    draw_curve,
    expected_best,
    kl_bound,
    kl_of_choice,
    over_optimized,
    powers_of_two,
    remarks,
)


def by_enumeration(scores, values, n):
    """Every subset of n, its best chosen, equal scores alike."""
    worth = []
    for subset in itertools.combinations(range(len(scores)), n):
        best = max(scores[i] for i in subset)
        tied = [values[i] for i in subset if scores[i] == best]
        worth.append(sum(tied) / len(tied))
    return sum(worth) / len(worth)


# ---- the choice


def test_the_best_of_two_of_three_by_hand():
    # pairs of (0, 1, 5): 1, 5, 5
    assert expected_best([0, 1, 5], [1, 2, 3]).tolist() == pytest.approx([2.0, 11 / 3, 5.0])
    # the judge's values of the choices 1, 5, 5 are 30, 20, 20
    assert expected_best([0, 1, 5], [1, 2, 3], [10, 30, 20]).tolist() == pytest.approx([20.0, 70 / 3, 20.0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_it_is_the_mean_over_all_subsets(seed, ties):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 3, 7).tolist() if ties else generator.normal(size=7).tolist()
    values = generator.normal(size=7).tolist()
    sizes = list(range(1, 8))
    assert expected_best(scores, sizes).tolist() == pytest.approx([by_enumeration(scores, scores, n) for n in sizes])
    assert expected_best(scores, sizes, values).tolist() == pytest.approx(
        [by_enumeration(scores, values, n) for n in sizes]
    )


def test_it_is_unbiased():
    """Drawn from 1, 2, 3, 4 alike, the best of two is worth 1/16 + 3/16 * 2 + 5/16 * 3 + 7/16 * 4 = 3.125."""
    drawn = list(itertools.product([1, 2, 3, 4], repeat=4))  # every sample of 4 that there can be
    assert np.mean([expected_best(sample, [2])[0] for sample in drawn]) == pytest.approx(3.125)


def test_chances_add_up_and_the_largest_n_takes_the_best():
    chances = choice_probabilities([3.0, 1.0, 2.0, 3.0], [1, 3, 4])
    assert chances.sum(axis=1).tolist() == pytest.approx([1, 1, 1])
    assert chances[0].tolist() == [0.25] * 4
    assert chances[2].tolist() == [0.5, 0, 0, 0.5]


def test_many_candidates_are_no_trouble():
    assert choice_probabilities(np.arange(2000.0), [1000]).sum() == pytest.approx(1)


@pytest.mark.parametrize(("scores", "sizes"), [([1.0, 2.0], [3]), ([1.0, 2.0], [0]), ([], [1])])
def test_more_than_there_are_cannot_be_chosen_from(scores, sizes):
    with pytest.raises(ValueError, match="candidates, so the best of"):
        choice_probabilities(scores, sizes)


def test_a_missing_score_is_named():
    with pytest.raises(ValueError, match="row 1 the first"):
        expected_best([1.0, float("nan")], [1])


def test_powers_of_two_end_with_the_largest():
    assert powers_of_two(1) == [1]
    assert powers_of_two(8) == [1, 2, 4, 8]
    assert powers_of_two(12) == [1, 2, 4, 8, 12]
    with pytest.raises(ValueError, match="largest n is 0"):
        powers_of_two(0)


# ---- how far from the policy


def exact_kl(probabilities, n):
    """Of best-of-n over answers in ascending order of score: P(best is i) = F(i)^n - F(i - 1)^n."""
    above = np.cumsum(probabilities)
    chosen = np.diff(np.concatenate([[0.0], above**n]))
    return float((chosen * np.log(chosen / probabilities)).sum())


def test_the_bound_by_hand():
    assert kl_bound(1) == 0
    assert kl_bound(2) == pytest.approx(math.log(2) - 0.5)
    assert kl_bound(16) == pytest.approx(2.772589 - 0.9375, abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("probabilities", [[0.5, 0.5], [0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.001] * 1000])
def test_the_exact_kl_is_below_both_bounds_and_these_are_in_order(probabilities, n):
    probabilities = np.array(probabilities)
    finer = float(kl_of_choice(n, math.log(probabilities[-1])))
    assert exact_kl(probabilities, n) <= finer + 1e-9 <= kl_bound(n) + 2e-9


def test_with_unlikely_answers_below_the_best_it_is_the_kl():
    probabilities = np.append(np.full(20_000, 0.7 / 20_000), 0.3)
    assert float(kl_of_choice(4, math.log(0.3))) == pytest.approx(exact_kl(probabilities, 4), abs=2e-4)


def test_the_ends_of_the_scale():
    assert kl_of_choice(8, [0.0]).tolist() == [0.0]  # one answer: nothing to choose
    assert kl_of_choice(8, [-60.0, -5000.0]).tolist() == pytest.approx([kl_bound(8)] * 2)
    assert kl_of_choice(1, [-3.0, 0.0, -2000.0]).tolist() == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("function", [kl_bound, lambda n: kl_of_choice(n, -1.0)])
def test_n_is_one_or_more(function):
    with pytest.raises(ValueError, match="n is 0"):
        function(0)


# ---- the curve

SCORES = [[0.0, 1.0, 2.0, 3.0], [10.0, 12.0, 11.0, 13.0]]
JUDGE = [[5.0, 6.0, 7.0, 0.0], [1.0, 2.0, 3.0, 4.0]]


def test_a_curve_by_hand():
    curve = best_of_n_curve(SCORES, {"judge": JUDGE}, sizes=[1, 4])
    one, four = curve
    assert (one["n"], one["prompts"], one["kl_bound"]) == (1, 2, 0.0)
    assert one["score"] == pytest.approx((1.5 + 11.5) / 2)
    assert four["score"] == pytest.approx((3 + 13) / 2)
    assert four["score_gain"] == pytest.approx(1.5)
    assert one["judge"] == pytest.approx((4.5 + 2.5) / 2)
    assert four["judge"] == pytest.approx((0 + 4) / 2)
    assert four["judge_ceiling"] == pytest.approx((7 + 4) / 2)
    assert four["score_gain_ci95"] == pytest.approx([1.5, 1.5])  # of both prompts
    # -4.5 and 1.5: the mean is -1.5, its error 3, and Student's t of one degree 12.706
    assert four["judge_gain_ci95"] == pytest.approx([-1.5 - 3 * 12.7062, -1.5 + 3 * 12.7062], abs=1e-3)


def test_the_intervals_are_those_of_scipys_bootstrap():
    from scipy.stats import bootstrap

    generator = np.random.default_rng(0)
    scores = generator.normal(size=(60, 8)) + generator.normal(size=(60, 1))
    row = best_of_n_curve(scores.tolist(), sizes=[8])[0]
    best = scores.max(axis=1)
    expected = bootstrap((best,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert row["score_ci95"] == pytest.approx([expected.low, expected.high], abs=0.02)


def test_by_default_n_doubles_up_to_what_every_prompt_with_a_choice_has():
    curve = best_of_n_curve([[1.0], [1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 6.0, 7.0]])
    assert [row["n"] for row in curve] == [1, 2, 3]
    assert {row["prompts"] for row in curve} == {2}


def test_a_single_prompt_has_no_intervals():
    assert best_of_n_curve([[1.0, 2.0]])[-1]["score_ci95"] is None


def test_the_kl_of_what_was_chosen_is_averaged_over_choices_and_prompts():
    logprobs = [[math.log(0.5)] * 4, [-90.0] * 4]
    row = best_of_n_curve(SCORES, logprobs=logprobs, sizes=[2])[0]
    # With q = 1/2 and n = 2: 3/4 log(3/2) + 1/4 (log 2 - log 2 - 1/2); of the unlikely ones the bound.
    assert row["kl"] == pytest.approx((0.75 * math.log(1.5) - 0.125 + math.log(2) - 0.5) / 2)


@pytest.mark.parametrize(
    ("scores", "more", "said"),
    [
        ([[1.0], [2.0]], {}, "No prompt has 2 candidates"),
        ([[1.0, 2.0]], {"sizes": [3]}, "No prompt has 3 candidates"),
        ([[1.0, 2.0]], {"judges": {"j": [[1.0]]}}, "j does not have one value for each"),
        ([[1.0, 2.0]], {"judges": {"score": [[1.0, 2.0]]}}, "named 'score'"),
    ],
)
def test_what_is_no_curve_is_refused(scores, more, said):
    with pytest.raises(ValueError, match=said):
        best_of_n_curve(scores, **more)


def test_over_optimization_is_told_of_the_judge_that_falls():
    curve = best_of_n_curve(
        [[0.0, 1.0, 2.0, 3.0]] * 2, {"falls": [[0.0, 1.0, 1.0, -9.0]] * 2, "rises": [[0.0, 1.0, 2.0, 3.0]] * 2}
    )
    assert over_optimized(curve, "falls") == 1
    assert over_optimized(curve, "rises") is None
    falls, rises = remarks(curve)
    assert falls.startswith("falls is highest at n = 1")
    assert rises == "rises is highest at the largest n, 4."


def test_a_table_and_flat_figures():
    curve = best_of_n_curve(SCORES, {"judge": JUDGE}, sizes=[1, 4])
    lines = curve_table(curve).splitlines()
    assert lines[0].split() == ["n", "KL", "<=", "score", "judge"]
    assert lines[1].split() == ["1", "0.00", "6.500", "3.500"]
    assert lines[2].split()[:3] == ["4", "0.64", "8.000"]
    metrics = curve_metrics(curve)
    assert (metrics["n"], metrics["curve_prompts"], metrics["score_of_one"]) == (4, 2, pytest.approx(6.5))
    assert "prompts" not in metrics


def test_what_no_policy_has_sampled_has_no_kl():
    curve = best_of_n_curve(SCORES, sampled=False)
    assert "kl_bound" not in curve[-1]
    assert curve_table(curve).splitlines()[0].split() == ["n", "score"]


@pytest.mark.parametrize("judges", [{}, {"judge": JUDGE, "gold": JUDGE}])
@pytest.mark.parametrize("sampled", [True, False])
def test_a_picture_is_drawn(tmp_path, judges, sampled):
    file = draw_curve(best_of_n_curve(SCORES, judges, sampled=sampled), tmp_path / "curve.png")
    assert file.read_bytes().startswith(b"\x89PNG")
