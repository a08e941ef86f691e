"""Every loss against numbers worked by hand or by enumeration, then what must hold for any scores."""

import ast
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck

from rlhf_recipes.data.collators import PairCollator
from rlhf_recipes.reward_modeling.losses import maths as L
from tests.reward_modeling.pair_trainer import trainer_of
from tests.tiny import tiny_classifier, tiny_tokenizer

NAN = math.nan
PAGE = Path(__file__).parents[3] / "docs/reward_losses.md"


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ranking_probability(scores, order):
    """Choosing one after the other, each time from those left, as Luce has it."""
    probability, left = 1.0, list(order)
    for item in order:
        probability *= math.exp(scores[item]) / sum(math.exp(scores[other]) for other in left)
        left.remove(item)
    return probability


# --- Pairs ---------------------------------------------------------------------------------------


def test_bradley_terry_by_hand():
    # Odds of 3 to 1: d = log 3, so sigma(d) = 3/4.
    chosen, rejected = t(math.log(3), 0.0), t(0.0, math.log(3))
    assert L.bradley_terry(chosen, rejected, reduction="none").tolist() == pytest.approx(
        [-math.log(3 / 4), math.log(4)]
    )
    assert L.bradley_terry(chosen, rejected).item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_a_margin_asks_for_more():
    chosen, rejected = t(math.log(6), math.log(6)), t(0.0, 0.0)
    # log 6 - log 2 = log 3; log 6 - log 6 = 0.
    losses = L.bradley_terry(chosen, rejected, margin=t(math.log(2), math.log(6)), reduction="none")
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(2)])
    assert L.bradley_terry(chosen, rejected, margin=math.log(2)).item() == pytest.approx(math.log(4 / 3))


def test_a_soft_target_is_the_share_of_votes():
    chosen, rejected = t(math.log(3)), t(0.0)
    # Three votes of four for what has probability 3/4.
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert L.bradley_terry(chosen, rejected, target=t(0.75)).item() == pytest.approx(expected)
    # It is least where the model says what the votes say.
    difference = t(math.log(3)).requires_grad_()
    L.bradley_terry(difference, t(0.0), target=0.75).backward()
    assert difference.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_label_smoothing_takes_that_share_of_labels_for_wrong():
    chosen, rejected = t(1.0), t(0.2)
    expected = -(0.9 * log_sigmoid(0.8) + 0.1 * log_sigmoid(-0.8))
    assert L.bradley_terry(chosen, rejected, label_smoothing=0.1).item() == pytest.approx(expected)
    # 0.9 * 0.75 + 0.1 * 0.25 = 0.7
    smoothed = L.bradley_terry(chosen, rejected, target=0.75, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(-(0.7 * log_sigmoid(0.8) + 0.3 * log_sigmoid(-0.8)))


def test_centering_adds_the_square_of_the_sum():
    # (2 + 1)² = 9 and (1 - 1)² = 0.
    losses = L.bradley_terry(t(2.0, 1.0), t(1.0, -1.0), center=0.1, reduction="none")
    assert losses.tolist() == pytest.approx([-log_sigmoid(1.0) + 0.9, -log_sigmoid(2.0)])


def test_a_pair_on_which_nobody_voted_does_not_count():
    chosen, rejected = t(2.0, 5.0).requires_grad_(), t(1.0, 0.0)
    loss = L.bradley_terry(chosen, rejected, target=t(1.0, NAN), center=0.1)
    assert loss.item() == pytest.approx(-log_sigmoid(1.0) + 0.9)
    loss.backward()
    assert chosen.grad[1] == 0


@pytest.mark.parametrize("center", [None, 0.05])
@pytest.mark.parametrize("margins", [None, (0.5, 0.0, 1.5)])
def test_it_is_the_loss_of_trl(center, margins, tmp_path):
    tokenizer = tiny_tokenizer("bert")
    model = tiny_classifier(tokenizer)
    rows = [{"chosen_ids": [11, 12, 13 + i], "rejected_ids": [40 + i], "length": 3} for i in range(3)]
    for row, margin in zip(rows, margins or (), strict=False):
        row["margin"] = margin
    options = {"center_rewards_coefficient": center, "bf16": False}
    trainer = trainer_of(tmp_path, model, tokenizer, rows=rows, **options)
    batch = PairCollator(tokenizer)(rows)
    with torch.no_grad():
        chosen, rejected = model(**{k: v for k, v in batch.items() if k != "margin"}).logits[:, 0].chunk(2)
        expected = trainer.compute_loss(model, dict(batch))
    ours = L.bradley_terry(chosen, rejected, margin=batch.get("margin"), center=center or 0.0)
    torch.testing.assert_close(ours, expected)


def test_hinge_by_hand():
    losses = L.hinge(t(2.0, 1.0, 0.0, 1.0), t(0.0, 0.5, 1.0, 1.0), reduction="none")
    assert losses.tolist() == [0.0, 0.5, 2.0, 1.0]  # 1 - 2 < 0; 1 - 0.5; 1 + 1; equal scores give the margin
    assert L.hinge(t(2.0, 1.0), t(0.0, 0.5), margin=t(3.0, 0.25)).item() == 0.5  # (1 + 0) / 2


def test_hinge_has_no_gradient_from_the_margin_on():
    chosen = t(1.0, 2.0, 0.9).requires_grad_()
    L.hinge(chosen, t(0.0, 0.0, 0.0), reduction="none").sum().backward()
    assert chosen.grad.tolist() == [0.0, 0.0, -1.0]


# --- All pairs of a batch ------------------------------------------------------------------------


def loop_over_pairs(scores, ratings, min_gap, scale=None, groups=None, texts_alike=False):
    pairs = []
    for i, j in itertools.combinations(range(len(scores)), 2):
        gap = ratings[i] - ratings[j]
        same_group = groups is None or groups[i] == groups[j]
        if math.isnan(gap) or not same_group or abs(gap) < min_gap - 1e-6 or (scale is None and gap == 0):
            continue
        p = sigmoid(gap / scale) if scale else float(gap > 0)
        d = scores[i] - scores[j]
        pairs.append((i, j, -(p * log_sigmoid(d) + (1 - p) * log_sigmoid(-d))))
    if not texts_alike:
        return sum(loss for *_, loss in pairs) / len(pairs)
    of_text = [[loss for *pair, loss in pairs if text in pair] for text in range(len(scores))]
    means = [sum(of) / len(of) for of in of_text if of]
    return sum(means) / len(means)


RATINGS = [1.8, 2.3, 2.3, 4.0, NAN, 1.0, 3.1]


@pytest.mark.parametrize("texts_alike", [False, True])
@pytest.mark.parametrize("groups", [None, [0, 0, 1, 1, 0, 1, 0]])
@pytest.mark.parametrize(("min_gap", "scale"), [(0.5, None), (0.0, None), (1.0, 0.7), (0.0, 0.7)])
def test_all_pairs_at_once_equal_the_loop(min_gap, scale, groups, texts_alike):
    scores = drawn(7)
    expected = loop_over_pairs(scores.tolist(), RATINGS, min_gap, scale, groups, texts_alike)
    as_tensor = None if groups is None else torch.tensor(groups)
    for ratings in (torch.tensor(RATINGS), t(*RATINGS)):  # 2.3 - 1.8 is below 0.5 in both
        loss = L.pairs_in_batch(scores, ratings, min_gap, scale, as_tensor, texts_alike)
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_three_texts_by_hand():
    # Ratings 1, 2, 4 and min_gap 2: the pairs (4, 2) and (4, 1), with d = 1 and d = 3.
    scores, ratings = t(0.0, 2.0, 3.0), t(1.0, 2.0, 4.0)
    assert L.pairs_in_batch(scores, ratings, 2.0).item() == pytest.approx(-(log_sigmoid(1) + log_sigmoid(3)) / 2)


def test_texts_that_count_alike_by_hand():
    # Differences of the pairs: 1-0 1, 2-0 2, 3-0 4, 3-1 3, 3-2 2; ratings 2 and 2.5 are too close.
    one, two, three, four = (-log_sigmoid(d) for d in (1, 2, 3, 4))
    of_texts = [(one + two + four) / 3, (one + three) / 2, (two + two) / 2, (four + three + two) / 3]
    loss = L.pairs_in_batch(t(0.0, 1.0, 2.0, 4.0), t(0.0, 2.0, 2.5, 4.5), 2.0, texts_alike=True)
    assert loss.item() == pytest.approx(sum(of_texts) / 4)
    assert loss.item() != pytest.approx((one + 2 * two + three + four) / 5, abs=1e-3)


def test_two_texts_are_bradley_terry():
    chosen, rejected = t(0.7), t(-0.4)
    expected = L.bradley_terry(chosen, rejected).item()
    assert L.pairs_in_batch(torch.cat([rejected, chosen]), t(1.0, 3.0)).item() == pytest.approx(expected)


@pytest.mark.parametrize("ratings", [(2.0, 2.0, 2.0), (NAN, 2.0, NAN), (2.0, 2.1, 2.2)])
def test_a_batch_without_a_pair_gives_0(ratings):
    scores = t(1.0, 2.0, 3.0).requires_grad_()
    loss = L.pairs_in_batch(scores, t(*ratings))
    loss.backward()
    assert (loss.item(), scores.grad.tolist()) == (0.0, [0.0, 0.0, 0.0])
    assert L.pairs_in_batch(t(1.0), t(1.0)).item() == 0.0


# --- Ratings -------------------------------------------------------------------------------------


def test_distances_by_hand():
    scores, targets = t(1.0, 2.0, 0.0), t(1.5, 5.0, NAN)
    assert L.mse(scores, targets, reduction="none").tolist() == [0.25, 9.0, 0.0]
    assert L.mae(scores, targets, reduction="none").tolist() == [0.5, 3.0, 0.0]
    # 0.5² / 2, and 2 * (3 - 2 / 2) beyond delta = 2.
    assert L.huber(scores, targets, delta=2.0, reduction="none").tolist() == [0.125, 4.0, 0.0]
    assert [f(scores, targets).item() for f in (L.mse, L.mae)] == [4.625, 1.75]  # over the two that are there
    assert L.huber(scores, targets, delta=2.0).item() == 2.0625


def test_weights_are_numbers_of_votes():
    # A mean of three votes counts as three rows: (3 * 0.25 + 1 * 9) / 4.
    weighted = L.mse(t(1.0, 2.0), t(1.5, 5.0), weights=torch.tensor([3, 1]))
    thrice = L.mse(t(1.0, 1.0, 1.0, 2.0), t(1.5, 1.5, 1.5, 5.0))
    assert weighted.item() == thrice.item() == 2.4375
    assert L.mae(t(1.0, 2.0), t(1.5, NAN), weights=t(1.0, NAN)).item() == 0.5


def test_the_best_constant_is_the_mean_or_the_median():
    targets = t(1.0, 2.0, 9.0)
    for loss, best in ((L.mse, 4.0), (L.mae, 2.0)):
        at = [loss(torch.full_like(targets, constant / 10), targets).item() for constant in range(100)]
        assert at.index(min(at)) == best * 10


def test_a_distance_of_0_has_no_gradient():
    for loss in (L.mse, L.mae, L.huber):
        scores = t(2.0).requires_grad_()
        loss(scores, t(2.0)).backward()
        assert scores.grad.item() == 0


# --- Levels --------------------------------------------------------------------------------------


def with_thresholds(*thetas):
    link = L.CumulativeLink(len(thetas) + 1).double()
    gaps = [math.log(math.expm1(high - low)) for low, high in itertools.pairwise(thetas)]
    with torch.no_grad():
        link.raw.copy_(t(thetas[0], *gaps))
    return link


def test_cumulative_link_by_hand():
    # P(y <= 0) = sigma(-1 - 0.5), P(y <= 1) = sigma(2 - 0.5).
    link = with_thresholds(-1.0, 2.0)
    low, middle = sigmoid(-1.5), sigmoid(1.5)
    assert link.thresholds().tolist() == pytest.approx([-1.0, 2.0])
    expected = [low, middle - low, 1 - middle]
    assert link.probabilities(t(0.5))[0].tolist() == pytest.approx(expected)
    assert link.expected(t(0.5)).item() == pytest.approx(expected[1] + 2 * expected[2])
    assert link.expected(t(0.5), levels=t(1.0, 3.0, 5.0)).item() == pytest.approx(
        expected[0] + 3 * expected[1] + 5 * expected[2]
    )
    losses = link.loss(t(0.5, 0.5), torch.tensor([1, 2]), reduction="none")
    assert losses.tolist() == pytest.approx([-math.log(expected[1]), -math.log(expected[2])])


@pytest.mark.parametrize("levels", [2, 3, 5, 10])
def test_probabilities_of_levels(levels):
    link = L.CumulativeLink(levels)
    assert link.probabilities(torch.zeros(1))[0].tolist() == pytest.approx([1 / levels] * levels, abs=1e-6)
    scores = torch.linspace(-8, 8, 33)
    probabilities = link.probabilities(scores)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(33))
    assert (link.thresholds().diff() > 0).all()
    # A better text is less likely at or below any level but the last, and has a higher expected rating.
    assert (probabilities.cumsum(dim=1)[:, :-1].diff(dim=0) < 0).all()
    assert (link.expected(scores).diff() > 0).all()


def test_two_levels_are_binary_cross_entropy():
    link, scores, labels = L.CumulativeLink(2), drawn(6).float(), torch.tensor([0, 1, 1, 0, 1, 0])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels.float())
    torch.testing.assert_close(link(scores, labels), expected)


def test_a_histogram_of_votes_is_the_mean_over_the_votes():
    link = with_thresholds(-1.0, 0.0, 2.0)
    votes = t([2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0])
    one_by_one = link.loss(t(0.3, 0.3, 0.3), torch.tensor([0, 0, 2]))
    assert link.loss(t(0.3, 0.9), votes).item() == pytest.approx(one_by_one.item())  # the second row has no votes
    assert link.loss(t(0.3, 0.9), votes.long(), reduction="none")[1] == 0
    logits = drawn(2, 4)
    expected = -logits[0].log_softmax(0)[torch.tensor([0, 0, 2])].mean()
    assert L.classification(logits, votes).item() == pytest.approx(expected.item())


def test_thresholds_stay_in_order_and_finite_wherever_they_are_pushed():
    link = L.CumulativeLink(4)
    with torch.no_grad():
        link.raw.copy_(torch.tensor([5.0, -1e4, 1e4]))
    labels = torch.arange(4)
    link.loss(torch.tensor([1e4, 1e4, -1e4, -1e4]), labels).backward()
    assert link.thresholds().diff().ge(0).all()
    assert link.raw.grad.isfinite().all()


def test_thresholds_are_learned():
    # Levels 0, 1, 2 with shares 0.6, 0.3, 0.1 and one score for all texts: the best thresholds say these shares.
    link = L.CumulativeLink(3)
    votes = torch.tensor([[6.0, 3.0, 1.0]])
    optimizer = torch.optim.LBFGS(link.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = link(torch.zeros(1), votes)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert link.probabilities(torch.zeros(1))[0].tolist() == pytest.approx([0.6, 0.3, 0.1], abs=1e-3)


def test_classification_by_hand():
    # Logits log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8.
    logits = t([0.0, math.log(2), math.log(5)])
    assert L.classification(logits, torch.tensor([2])).item() == pytest.approx(math.log(8 / 5))
    assert L.classification(t([1.0, 1.0, 1.0]), torch.tensor([0])).item() == pytest.approx(math.log(3))
    assert L.expected_level(logits.softmax(1)).item() == pytest.approx(2 / 8 + 2 * 5 / 8)


# --- Rankings ------------------------------------------------------------------------------------


def test_a_ranking_by_hand():
    # Weights 2, 3, 5: first the third (5/10), then the first (2/5), then what is left.
    scores = t([math.log(2), math.log(3), math.log(5)])
    loss = L.plackett_luce(scores, torch.tensor([[2, 3, 1]]))
    assert loss.item() == pytest.approx(-math.log(5 / 10 * 2 / 5))
    assert L.plackett_luce(scores, torch.tensor([[20.0, 30.5, -1.0]])).item() == loss.item()  # their order alone


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_probabilities_of_all_orders_sum_to_1(size):
    scores = drawn(1, size, seed=size)
    orders = list(itertools.permutations(range(size)))
    ranks = L.ranks_from_order(torch.tensor(orders))
    probabilities = (-L.plackett_luce(scores.expand(len(orders), -1), ranks, reduction="none")).exp()
    assert probabilities.sum().item() == pytest.approx(1.0)
    assert probabilities.tolist() == pytest.approx([ranking_probability(scores[0].tolist(), o) for o in orders])


def test_ranks_of_an_order():
    assert L.ranks_from_order(torch.tensor([[2, 0, 1], [0, 1, 2]])).tolist() == [[2, 3, 1], [1, 2, 3]]


def test_two_completions_are_bradley_terry():
    scores = drawn(5, 2)
    ranks = torch.tensor([[1, 2]] * 5)
    expected = L.bradley_terry(scores[:, 0], scores[:, 1], reduction="none")
    for losses in (
        L.plackett_luce(scores, ranks, reduction="none"),
        L.info_nce(scores, torch.zeros(5).long(), reduction="none"),
        L.best_worst(scores, torch.zeros(5).long(), torch.ones(5).long(), sequential=True, reduction="none"),
    ):
        torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("top", [1, 2, 3])
def test_the_best_few_are_the_sum_over_all_orders_of_the_others(top):
    scores = drawn(1, 4, seed=3)
    first = (2, 0, 3, 1)[:top]
    full = [order for order in itertools.permutations(range(4)) if order[:top] == first]
    expected = sum(ranking_probability(scores[0].tolist(), order) for order in full)
    ranks = torch.full((1, 4), 9)
    for place, item in enumerate(first):
        ranks[0, item] = place
    for given in (top, torch.tensor([top])):
        loss = L.plackett_luce(scores, ranks, top=given)
        assert loss.item() == pytest.approx(-math.log(expected))


def tied_likelihoods(scores):
    """Of items 0 and 1 tied before item 2: the mean over both orders, and both approximations as defined."""
    a, b, c = (math.exp(score) for score in scores)
    mean = (ranking_probability(scores, (0, 1, 2)) + ranking_probability(scores, (1, 0, 2))) / 2
    breslow = a * b / (a + b + c) ** 2
    efron = a * b / ((a + b + c) * ((a + b) / 2 + c))
    return mean, breslow, efron


@pytest.mark.parametrize("scores", [(0.0, 0.0, 0.0), (1.0, 1.0, -0.5), (0.4, 0.1, -1.0), (0.2, -0.1, 0.3)])
def test_ties_by_breslow_and_efron(scores):
    mean, breslow, efron = tied_likelihoods(list(scores))
    ranks = torch.tensor([[1, 1, 2]])
    assert L.plackett_luce(t(scores), ranks, ties="breslow").item() == pytest.approx(-math.log(breslow))
    assert L.plackett_luce(t(scores), ranks).item() == pytest.approx(-math.log(efron))
    assert abs(efron - mean) < abs(breslow - mean)
    if scores[0] == scores[1]:
        assert efron == pytest.approx(mean)


def test_four_with_a_tie_of_three():
    # Weights 2 first, then 3, 3, 4 tied, by Efron: 2/12 * 3/10 * 3/(10 * 2/3) * 4/(10 * 1/3).
    scores = t([math.log(3), math.log(2), math.log(4), math.log(3)])
    ranks = torch.tensor([[2, 1, 2, 2]])
    efron = 2 / 12 * 3 / 10 * 3 / (10 * 2 / 3) * 4 / (10 / 3)
    assert L.plackett_luce(scores, ranks).item() == pytest.approx(-math.log(efron))
    breslow = 2 / 12 * 3 / 10 * 3 / 10 * 4 / 10
    assert L.plackett_luce(scores, ranks, ties="breslow").item() == pytest.approx(-math.log(breslow))


def test_a_tie_costs_least_where_its_scores_are_equal():
    ranks = torch.ones(1, 3).long()
    equal = L.plackett_luce(t([2.0, 2.0, 2.0]), ranks)
    assert equal.item() == pytest.approx(math.log(6))  # log g!
    assert L.plackett_luce(t([2.0, 2.0, 2.0]), ranks, ties="breslow").item() == pytest.approx(3 * math.log(3))
    for seed in range(5):
        assert L.plackett_luce(drawn(1, 3, seed=seed), ranks) > equal
    # Two: twice Bradley-Terry with target 1/2, efron less log 2.
    half = L.bradley_terry(t(0.3), t(-0.8), target=0.5).item()
    two = torch.ones(1, 2).long()
    assert L.plackett_luce(t([0.3, -0.8]), two, ties="breslow").item() == pytest.approx(2 * half)
    assert L.plackett_luce(t([0.3, -0.8]), two).item() == pytest.approx(2 * half - math.log(2))


def test_a_tie_across_the_boundary_counts_whole():
    scores = drawn(1, 4)
    ranks = torch.tensor([[1, 2, 2, 5]])
    whole = L.plackett_luce(scores, ranks, top=3)
    assert L.plackett_luce(scores, ranks, top=2).item() == whole.item()
    assert L.plackett_luce(scores, ranks, top=1).item() < whole.item()


# --- One best of many; best and worst ---------------------------------------------------------------


def test_info_nce_by_hand():
    scores = t([math.log(2), math.log(3), math.log(5)])
    assert L.info_nce(scores, torch.tensor([1])).item() == pytest.approx(-math.log(3 / 10))
    # At temperature 1/2 the weights are squared: 4, 9, 25.
    assert L.info_nce(scores, torch.tensor([1]), temperature=0.5).item() == pytest.approx(-math.log(9 / 38))
    assert L.info_nce(t([1.0, 1.0, 1.0]), torch.tensor([0])).item() == pytest.approx(math.log(3))


def test_info_nce_is_the_first_choice_of_a_ranking():
    scores = drawn(3, 4)
    first = L.plackett_luce(scores, torch.tensor([[3, 2, 1, 4]] * 3), top=1, reduction="none")
    torch.testing.assert_close(L.info_nce(scores, torch.tensor([2, 2, 2]), reduction="none"), first)


def test_best_and_worst_by_hand():
    # Weights 1, 2, 4. Ratios best / worst: 1/2, 1/4, 2, 1/2, 4, 2 sum to 9.25.
    scores = t([0.0, math.log(2), math.log(4)])
    best, worst = torch.tensor([2]), torch.tensor([0])
    assert L.best_worst(scores, best, worst).item() == pytest.approx(-math.log(4 / 9.25))
    # First 4/7, then among 1 and 2 the worst, 1 / (1 + 1/2).
    assert L.best_worst(scores, best, worst, sequential=True).item() == pytest.approx(-math.log(4 / 7 * 2 / 3))


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_probabilities_of_all_best_and_worst_sum_to_1(size, sequential):
    pairs = torch.tensor(list(itertools.permutations(range(size), 2)))
    scores = drawn(1, size).expand(len(pairs), -1)
    losses = L.best_worst(scores, pairs[:, 0], pairs[:, 1], sequential=sequential, reduction="none")
    assert (-losses).exp().sum().item() == pytest.approx(1.0)
    equal = L.best_worst(torch.ones(1, size), pairs[:1, 0], pairs[:1, 1], sequential=sequential)
    assert equal.item() == pytest.approx(math.log(size * (size - 1)))


def test_of_two_completions_maxdiff_is_twice_as_sure():
    loss = L.best_worst(t([0.3, -0.4]), torch.tensor([0]), torch.tensor([1]))
    assert loss.item() == pytest.approx(-log_sigmoid(2 * 0.7))


# --- Labels --------------------------------------------------------------------------------------


def test_binary_cross_entropy_is_that_of_torch():
    scores, labels, weights = drawn(8), t(0, 1, 1, 0, 0.3, 1, 0, 1), drawn(8, seed=1).abs()
    of_torch = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(L.binary_cross_entropy(scores, labels), of_torch(scores, labels))
    torch.testing.assert_close(
        L.binary_cross_entropy(scores, labels, pos_weight=3.0), of_torch(scores, labels, pos_weight=t(3.0))
    )
    torch.testing.assert_close(
        L.binary_cross_entropy(scores, labels, weights=weights, reduction="none"),
        of_torch(scores, labels, weight=weights, reduction="none"),
    )


def test_a_missing_label_does_not_count():
    assert L.binary_cross_entropy(t(2.0, 9.0), t(1.0, NAN)).item() == pytest.approx(-log_sigmoid(2.0))


def test_noise_by_hand():
    # sigma = 3/4. Seen as 1: 0.8 * 3/4 + 0.1 * 1/4 = 0.625.
    scores = t(math.log(3), math.log(3))
    losses = L.binary_cross_entropy(scores, t(1.0, 0.0), noise=(0.1, 0.2), reduction="none")
    assert losses.tolist() == pytest.approx([-math.log(0.625), -math.log(0.375)])


@pytest.mark.parametrize("noise", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.4), (0.1, 0.2)])
def test_with_the_rates_known_the_true_share_is_learned(noise):
    # Seven of ten are truly 1. The best score for what is seen of them is still log(7 / 3).
    e0, e1 = noise
    seen = 0.7 * (1 - e1) + 0.3 * e0
    score = t(math.log(7 / 3)).requires_grad_()
    L.binary_cross_entropy(score, t(seen), noise=noise).backward()
    assert score.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_a_wrong_label_costs_no_more_than_its_rate_says():
    losses = L.binary_cross_entropy(t(-1e4, 1e4), t(1.0, 0.0), noise=(0.1, 0.2), reduction="none")
    assert losses.tolist() == pytest.approx([-math.log(0.1), -math.log(0.2)])


def test_balanced_classes_leave_the_score_at_0():
    labels = t(1, 0, 0, 0, NAN)
    assert L.balanced_pos_weight(labels) == 3.0
    assert L.balanced_pos_weight(torch.tensor([1, 0, 1])) == 0.5
    scores = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    L.binary_cross_entropy(scores, labels, pos_weight=L.balanced_pos_weight(labels)).backward()
    assert scores.grad.sum().item() == pytest.approx(0.0)
    for one_class in (t(1, 1), t(0, NAN), t(NAN)):
        with pytest.raises(ValueError, match="both are needed"):
            L.balanced_pos_weight(one_class)


def test_steps_count_alike_in_all_rows():
    scores, labels = t([2.0, -1.0, 0.0], [1.0, NAN, NAN]), t([1.0, 0.0, 0.5], [0.0, NAN, math.inf])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    losses = [-log_sigmoid(2), -log_sigmoid(1), math.log(2), -log_sigmoid(-1)]
    assert L.process(scores, labels, mask).item() == pytest.approx(sum(losses) / 4)
    assert L.process(scores, labels, mask, kind="mse").item() == pytest.approx((1 + 1 + 0.25 + 1) / 4)
    none = L.process(scores, labels, mask, reduction="none")
    torch.testing.assert_close(none, t(losses[:3], [losses[3], 0.0, 0.0]))
    assert L.process(t([2.0, 5.0]), t([1.0, NAN])).item() == pytest.approx(-log_sigmoid(2))  # a step without a label


# --- Objectives ----------------------------------------------------------------------------------


def test_objectives_that_are_missing_do_not_count():
    scores, targets = t([1.0, 2.0], [0.0, 5.0], [9.0, 9.0]), t([2.0, 4.0], [3.0, NAN], [NAN, NAN])
    # Squares 1, 4 and 9.
    assert L.multi_objective(scores, targets).item() == pytest.approx(14 / 3)
    assert L.multi_objective(scores, targets, weights=t(1.0, 3.0)).item() == pytest.approx((1 + 9 + 3 * 4) / 5)
    assert L.multi_objective(scores, targets, kind="mae").item() == pytest.approx((1 + 2 + 3) / 3)
    assert L.multi_objective(scores, targets, kind="huber").item() == pytest.approx((0.5 + 1.5 + 2.5) / 3)
    assert L.multi_objective(scores, targets, reduction="none").tolist() == [[1.0, 4.0], [9.0, 0.0], [0.0, 0.0]]
    soft = L.multi_objective(t([0.0, 2.0]), t([0.5, NAN]), kind="bce")
    assert soft.item() == pytest.approx(math.log(2))


def test_the_gate_by_hand():
    # Coefficients 1/4 and 3/4 of 8 and 4.
    scores, logits = t([8.0, 4.0], [0.0, 4.0]), t(0.0, math.log(3))
    assert L.gate(scores, logits).tolist() == pytest.approx([5.0, 3.0])
    by_row = t([0.0, math.log(3)], [5.0, 5.0])
    assert L.gate(scores, by_row).tolist() == pytest.approx([5.0, 2.0])


def test_the_gated_score_lies_between_and_rises_with_each_objective():
    scores = drawn(6, 4).requires_grad_()
    gated = L.gate(scores, drawn(6, 4, seed=1))
    assert ((gated >= scores.min(1).values) & (gated <= scores.max(1).values)).all()
    gated.sum().backward()
    assert (scores.grad > 0).all()
    torch.testing.assert_close(scores.grad.sum(1), torch.ones(6, dtype=torch.float64))


# --- Without the covariate -----------------------------------------------------------------------


def correlation(a, b):
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def test_residual_by_hand():
    # x = 0, 1, 2 and s = 1, 2, 6: slope 5/2, mean 3, fit 0.5, 3, 5.5.
    left = L.residual(t(1.0, 2.0, 6.0), torch.tensor([0, 1, 2]))
    assert left.tolist() == pytest.approx([0.5, -1.0, 0.5])
    kept = L.residual(t(1.0, 2.0, 6.0), torch.tensor([0, 1, 2]), keep_mean=True)
    assert kept.tolist() == pytest.approx([3.5, 2.0, 3.5])


def test_what_is_left_has_no_correlation_with_the_covariate():
    lengths = torch.tensor([12, 900, 33, 150, 151, 420, 7, 80], dtype=torch.float64)
    scores = drawn(8) + 0.01 * lengths
    assert correlation(scores, lengths) > 0.9
    left = L.residual(scores, lengths)
    assert correlation(left, lengths) == pytest.approx(0.0, abs=1e-12)
    assert left.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert correlation(L.residual(scores.float(), lengths), lengths.float()) == pytest.approx(0.0, abs=1e-5)
    # Twice is once.
    torch.testing.assert_close(L.residual(left, lengths), left)


def test_no_step_goes_along_the_covariate():
    lengths, scores = (torch.arange(8.0).double() ** 2).requires_grad_(), drawn(8).requires_grad_()
    left = L.residual(scores, lengths)
    L.bradley_terry(left[:4], left[4:]).backward()
    assert lengths.grad is None
    assert scores.grad.norm() > 0.1
    assert (scores.grad * lengths).sum().item() == pytest.approx(0.0, abs=1e-12)


def test_residual_without_anything_to_fit():
    assert L.residual(t(5.0), t(3.0)).tolist() == [0.0]
    assert L.residual(t(5.0, 7.0), t(1.0, 4.0)).tolist() == pytest.approx([0.0, 0.0])
    scores = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    left = L.residual(scores, torch.tensor([1.0, 1.0 + 2**-23, 1.0]))  # as near to constant as float32 rounds
    assert L.residual(scores, torch.full((3,), 0.1)).tolist() == pytest.approx([-2.0, -1.0, 3.0])
    assert left.tolist() == pytest.approx([-2.0, -1.0, 3.0])
    (left**2).sum().backward()
    assert scores.grad.tolist() == pytest.approx([-4.0, -2.0, 6.0])


def test_residual_of_lists_is_over_all_that_is_real():
    scores, lengths = drawn(2, 3), t([5.0, 1.0, 2.0], [7.0, 3.0, 0.0])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    flat = L.residual(scores.flatten()[:5], lengths.flatten()[:5])
    padded = L.residual(torch.where(mask.bool(), scores, NAN), torch.where(mask.bool(), lengths, NAN), mask)
    torch.testing.assert_close(padded.flatten(), torch.cat([flat, t(0.0)]))


# --- What holds for all --------------------------------------------------------------------------

RANKS = torch.tensor([[1, 2, 2, 4], [3, 1, 4, 2], [2, 2, 2, 1]])
BEST, WORST = torch.tensor([0, 1, 3]), torch.tensor([3, 2, 1])
LABELS = t(0.0, 1.0, 0.3)
LINK = L.CumulativeLink(4)

# Of two columns of scores, (B, 2).
PAIRS = {
    "bradley_terry": lambda s, **kw: L.bradley_terry(s[:, 0], s[:, 1], margin=LABELS, target=LABELS, **kw),
    "hinge": lambda s, **kw: L.hinge(s[:, 0], s[:, 1], margin=0.3, **kw),
}
# Of lists, (B, 4), with a mask.
LISTS = {
    "efron": lambda s, m=None, **kw: L.plackett_luce(s, RANKS, m, **kw),
    "breslow": lambda s, m=None, **kw: L.plackett_luce(s, RANKS, m, ties="breslow", **kw),
    "top": lambda s, m=None, **kw: L.plackett_luce(s, RANKS, m, top=2, **kw),
    "info_nce": lambda s, m=None, **kw: L.info_nce(s, BEST, m, temperature=0.7, **kw),
    "maxdiff": lambda s, m=None, **kw: L.best_worst(s, BEST, WORST, m, **kw),
    "sequential": lambda s, m=None, **kw: L.best_worst(s, BEST, WORST, m, sequential=True, **kw),
}
# Of single scores, (B,).
SINGLE = {
    "mse": lambda s, **kw: L.mse(s, LABELS, **kw),
    "mae": lambda s, **kw: L.mae(s, LABELS, **kw),
    "huber": lambda s, **kw: L.huber(s, LABELS, **kw),
    "bce": lambda s, **kw: L.binary_cross_entropy(s, LABELS, pos_weight=2.0, **kw),
    "noise": lambda s, **kw: L.binary_cross_entropy(s, LABELS, noise=(0.1, 0.2), **kw),
    "noise of one side": lambda s, **kw: L.binary_cross_entropy(s, LABELS, noise=(0.1, 0.0), **kw),
    "ordinal": lambda s, **kw: LINK.loss(s, torch.tensor([0, 2, 3]), **kw),
}
OTHER = {
    "pairs_in_batch": (lambda s: L.pairs_in_batch(s, LABELS, min_gap=0.2, texts_alike=True), (3,)),
    "soft pairs": (lambda s: L.pairs_in_batch(s, LABELS, min_gap=0.0, scale=0.5), (3,)),
    "centered": (lambda s: L.bradley_terry(s[:, 0], s[:, 1], center=0.1, label_smoothing=0.2), (3, 2)),
    "classification": (lambda s: L.classification(s, torch.tensor([0, 3, 1])), (3, 4)),
    "process": (lambda s: L.process(s, LABELS[:, None].expand(3, 4), RANKS > 1), (3, 4)),
    "multi_objective": (lambda s: L.multi_objective(s, t([1.0, NAN], [0.2, 0.0], [NAN, NAN])), (3, 2)),
    "gate": (lambda s: L.gate(s, t(0.3, -0.2, 0.0, 1.0)).sum(), (3, 4)),
    "residual": (lambda s: L.mse(L.residual(s, LABELS, keep_mean=True), LABELS), (3,)),
}
SHAPES = dict.fromkeys(PAIRS, (3, 2)) | dict.fromkeys(LISTS, (3, 4)) | dict.fromkeys(SINGLE, (3,))
ALL = {name: (f, SHAPES[name]) for name, f in (PAIRS | LISTS | SINGLE).items()} | OTHER


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_differences(name):
    loss, shape = ALL[name]
    assert gradcheck(loss, (drawn(*shape, seed=5).requires_grad_(),))


def test_gradients_of_thresholds_and_gate():
    link, labels = L.CumulativeLink(4).double(), torch.tensor([0, 1, 3])
    raw = link.raw.detach().clone().requires_grad_()
    of_raw = lambda raw: torch.func.functional_call(link, {"raw": raw}, (drawn(3), labels))  # noqa: E731
    assert gradcheck(of_raw, (raw,))
    assert gradcheck(lambda logits: L.gate(drawn(3, 4), logits), (drawn(3, 4, seed=2).requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_extreme_scores_have_finite_losses_and_gradients(name, dtype):
    loss, shape = ALL[name]
    for seed in range(4):
        scores = (1e4 * drawn(*shape, seed=seed).sign()).to(dtype).requires_grad_()
        value = loss(scores)
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert scores.grad.isfinite().all()
        assert scores.grad.dtype == dtype


def test_differences_of_large_scores_keep_their_digits():
    # In float32 1e4 has a spacing of 1e-3: log(exp(1e4) + exp(1e4)) - 1e4 would not give log 2 to six digits.
    scores = torch.tensor([[1e4, 1e4, -1e4]])
    assert L.plackett_luce(scores, torch.tensor([[1, 2, 3]])).item() == pytest.approx(math.log(2), abs=1e-6)
    assert L.info_nce(scores, torch.tensor([0])).item() == pytest.approx(math.log(2), abs=1e-6)
    assert L.best_worst(scores, torch.tensor([0]), torch.tensor([2])).item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("name", PAIRS | LISTS)
def test_comparisons_do_not_change_when_all_scores_rise(name):
    loss, shape = ALL[name]
    scores = drawn(*shape)
    shifted = scores + t(3.0, -2.0, 70.0)[:, None]  # each row by its own number
    torch.testing.assert_close(loss(shifted, reduction="none"), loss(scores, reduction="none"))


def test_pairs_in_a_batch_do_not_change_when_all_scores_rise():
    scores = drawn(3)
    torch.testing.assert_close(L.pairs_in_batch(scores + 7, LABELS, 0.2), L.pairs_in_batch(scores, LABELS, 0.2))


@pytest.mark.parametrize("name", PAIRS | LISTS | SINGLE)
def test_the_mean_is_that_of_the_rows(name):
    loss, shape = ALL[name]
    scores = drawn(*shape)
    rows = loss(scores, reduction="none")
    assert rows.shape == (3,)
    torch.testing.assert_close(loss(scores), rows.mean())


@pytest.mark.parametrize("name", LISTS)
def test_padding_changes_nothing(name):
    """Every row loses one completion that it is not about: by a mask over it, or by not being there."""
    drop = torch.tensor([2, 0, 2])
    mask = torch.ones(3, 4).scatter(1, drop[:, None], 0)
    full = drawn(3, 4)
    scores = torch.where(mask.bool(), full, NAN).requires_grad_()
    padded = LISTS[name](scores, mask, reduction="none")
    padded.sum().backward()
    for row in range(3):
        keep = [column for column in range(4) if column != drop[row]]
        place = {column: keep.index(column) for column in keep}
        best, worst = (torch.tensor([place[index[row].item()]]) for index in (BEST, WORST))
        short = full[row : row + 1, keep].clone().requires_grad_()
        alone = {
            "efron": lambda s: L.plackett_luce(s, RANKS[row : row + 1, keep]),  # noqa: B023
            "breslow": lambda s: L.plackett_luce(s, RANKS[row : row + 1, keep], ties="breslow"),  # noqa: B023
            "top": lambda s: L.plackett_luce(s, RANKS[row : row + 1, keep], top=2),  # noqa: B023
            "info_nce": lambda s: L.info_nce(s, best, temperature=0.7),  # noqa: B023
            "maxdiff": lambda s: L.best_worst(s, best, worst),  # noqa: B023
            "sequential": lambda s: L.best_worst(s, best, worst, sequential=True),  # noqa: B023
        }[name](short)
        alone.backward()
        torch.testing.assert_close(padded[row], alone)
        torch.testing.assert_close(scores.grad[row, keep], short.grad[0])
        assert scores.grad[row, drop[row]] == 0


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_one_does_not_count(name):
    scores = drawn(3, 4).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
    rows = LISTS[name](scores, mask, reduction="none")
    assert rows[1:].tolist() == [0.0, 0.0]
    mean = LISTS[name](scores, mask)
    assert mean.item() == pytest.approx(rows[0].item())
    mean.backward()
    assert scores.grad.isfinite().all()
    assert scores.grad[1:].abs().sum() == 0
    assert LISTS[name](scores, torch.zeros(3, 4)).item() == 0.0


def test_lists_of_one_column():
    one, first = t([5.0], [NAN]), torch.tensor([0, 0])
    mask = torch.tensor([[1], [0]])
    assert L.plackett_luce(one, torch.ones(2, 1), mask).item() == 0
    assert L.info_nce(one, first, mask).item() == 0
    assert L.best_worst(one, first, first, mask).item() == 0
    assert L.best_worst(one, first, first, mask, sequential=True).item() == 0


def test_a_row_of_which_nothing_is_asked_does_not_count():
    scores = drawn(2, 3)
    loss = L.plackett_luce(scores, torch.tensor([[1, 2, 3]] * 2), top=torch.tensor([3, 0]))
    assert loss.item() == pytest.approx(L.plackett_luce(scores[:1], torch.tensor([[1, 2, 3]])).item())


def test_where_nothing_counts_the_mean_is_0():
    for loss in (L.mse, L.mae, L.huber, L.binary_cross_entropy, L.multi_objective, L.process):
        scores = torch.ones(2, 2, requires_grad=True)
        value = loss(scores, torch.full((2, 2), NAN))
        value.backward()
        assert (value.item(), scores.grad.abs().sum().item()) == (0.0, 0.0)


def test_a_score_that_is_nan_is_not_hidden():
    assert L.bradley_terry(t(NAN, 1.0), t(0.0, 0.0)).isnan()
    assert L.mse(t(NAN, 1.0), t(0.0, 0.0)).isnan()
    assert L.plackett_luce(t([NAN, 1.0]), torch.tensor([[1, 2]])).isnan()


# --- Mistakes ------------------------------------------------------------------------------------

ONE, LIST = torch.zeros(3), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: L.bradley_terry(ONE, ONE[:, None]), r"chosen \(3,\) and rejected \(3, 1\)"),
        (lambda: L.bradley_terry(ONE[:, None], ONE[:, None]), "one number for each row"),
        (lambda: L.bradley_terry(ONE, ONE, margin=ONE[:2]), "margin"),
        (lambda: L.bradley_terry(ONE, ONE, target=1.5), "target is 1.5"),
        (lambda: L.bradley_terry(ONE, ONE, label_smoothing=0.6), "label_smoothing is 0.6"),
        (lambda: L.bradley_terry(ONE, ONE, center=-1.0), "center -1.0"),
        (lambda: L.bradley_terry(ONE, ONE, reduction="sum"), "reduction is 'sum'"),
        (lambda: L.pairs_in_batch(ONE, ONE, min_gap=-1.0), "min_gap is -1.0"),
        (lambda: L.pairs_in_batch(ONE, ONE, scale=0.0), "scale 0.0"),
        (lambda: L.pairs_in_batch(ONE, ONE, groups=ONE[:2]), "groups"),
        (lambda: L.mse(ONE, ONE[:, None]), "targets"),
        (lambda: L.mse(ONE, ONE, weights=ONE[:1]), "weights"),
        (lambda: L.huber(ONE, ONE, delta=0.0), "delta is 0"),
        (lambda: L.CumulativeLink(1), "num_levels is 1"),
        (lambda: L.CumulativeLink(3).loss(ONE, ONE), "as integers from 0"),
        (lambda: L.CumulativeLink(3).loss(ONE, LIST), r"votes for each level"),
        (lambda: L.CumulativeLink(3).loss(LIST, ONE.long()), r"one score for each text"),
        (lambda: L.classification(ONE, ONE.long()), "labels"),
        (lambda: L.plackett_luce(ONE, ONE), "a list for each row"),
        (lambda: L.plackett_luce(LIST, LIST[:, :2]), "ranks"),
        (lambda: L.plackett_luce(LIST, LIST, LIST[:2]), "mask"),
        (lambda: L.plackett_luce(LIST, LIST, top=0), "top is 0"),
        (lambda: L.plackett_luce(LIST, LIST, ties="exact"), "ties is 'exact'"),
        (lambda: L.info_nce(LIST, ONE[:2].long()), "positive"),
        (lambda: L.info_nce(LIST, ONE.long(), temperature=0.0), "temperature is 0"),
        (lambda: L.best_worst(LIST, ONE.long(), LIST.long()), "worst"),
        (lambda: L.binary_cross_entropy(ONE, ONE, noise=(0.5, 0.5)), "sum to less than 1"),
        (lambda: L.binary_cross_entropy(ONE, ONE, pos_weight=0.0), "pos_weight is 0"),
        (lambda: L.process(LIST, LIST, kind="median"), "mse, mae, huber, bce"),
        (lambda: L.multi_objective(LIST, LIST, weights=ONE), "there are 4 objectives"),
        (lambda: L.gate(LIST, ONE), "gate_logits"),
        (lambda: L.residual(ONE, LIST), "covariate"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_module_needs_torch_alone():
    tree = ast.parse(Path(L.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} == {"math", "typing", "torch"}
