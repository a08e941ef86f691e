import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from rlhf_recipes.data.feedback import weights
from rlhf_recipes.data.raters import agreement
from rlhf_recipes.data.raters import trust as raters
from rlhf_recipes.data.raters import votes as votes_module
from rlhf_recipes.data.raters.agreement import (
    agreement_metrics,
    all_pairs_accuracy,
    correlation_ceiling,
    main,
    pairwise_ceiling,
    raters_needed,
    spearman_brown,
    split_half,
)
from rlhf_recipes.data.raters.coefficients import cohen_kappa, krippendorff_alpha, pairwise_kappas
from rlhf_recipes.data.raters.votes import RatingModel
from rlhf_recipes.reward_modeling.evaluation import baselines as scoring_metrics

pytest.importorskip("scipy")
pytest.importorskip("krippendorff")

PROJECT = Path(__file__).parents[3]
N = None
NAN = float("nan")

# Twelve units and four observers, with missing data: Krippendorff (2011), section C. A row is an observer.
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]
UNITS = [list(column) for column in zip(*KRIPPENDORFF, strict=True)]
WORDS = ["awful", "bad", "fair", "good", "great"]

SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def simulated(texts=600, between=1.0, within=1.0, raters=4, seed=0):
    generator = np.random.default_rng(seed)
    truth = generator.normal(0.0, between**0.5, size=texts)
    return truth, truth[:, None] + generator.normal(0.0, within**0.5, size=(texts, raters))


# --- coefficients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorffs_own_example(level, published):
    assert krippendorff_alpha(UNITS, level) == pytest.approx(published, abs=0.0005)


def test_alpha_takes_lists_of_any_length_in_any_order():
    ragged = [[vote for vote in reversed(of_unit) if vote is not N] for of_unit in UNITS]
    assert krippendorff_alpha(ragged, "ordinal") == pytest.approx(0.815, abs=0.0005)
    with_nan = [[NAN if vote is N else float(vote) for vote in of_unit] for of_unit in UNITS]
    assert krippendorff_alpha(with_nan, "ordinal") == pytest.approx(0.815, abs=0.0005)


def test_alpha_of_labels_that_are_texts():
    named = [[N if vote is N else WORDS[vote - 1] for vote in of_unit] for of_unit in UNITS]
    assert krippendorff_alpha(named, "nominal") == pytest.approx(0.743, abs=0.0005)
    assert krippendorff_alpha(named, "ordinal", WORDS) == pytest.approx(0.815, abs=0.0005)
    for level in ("ordinal", "interval", "ratio"):
        with pytest.raises(ValueError, match=f"Votes are texts, such as 'awful', and the level is {level}"):
            krippendorff_alpha(named, level)


def test_the_order_of_votes_does_not_matter():
    for order in itertools.permutations([1, 2, 4]):
        # Observed: 2 (1 + 9 + 4) / (3 - 1) / 5 votes. Expected: 2 * 6.8 / (5 - 1), the squares around the mean 1.8.
        assert krippendorff_alpha([list(order), [1, 1]]) == pytest.approx(1 - (14 / 5) / (2 * 6.8 / 4))


def test_alpha_at_its_ends():
    assert krippendorff_alpha([[1, 1], [2, 2], [3, 3]]) == 1.0
    # Two units of votes (0, 1): n = 4, observed disagreement 1, expected 2 * 2 * 2 / (4 * 3) = 2/3.
    assert krippendorff_alpha([[0, 1], [1, 0]], "nominal") == pytest.approx(1 - 1 / (2 / 3))


@pytest.mark.parametrize(
    ("votes", "level", "message"),
    [
        ([], "nominal", "None of 0 texts has two votes"),
        ([[1], [2], [3]], "interval", "the most are 1"),
        ([[1, None], [2, NAN]], "interval", "the most are 1"),
        ([[2, 2], [2, 2]], "ordinal", "All 4 votes are 2"),
        ([[1, math.inf], [1, 2]], "interval", "not finite"),
        ([[1, 2]], "cardinal", "level is 'cardinal'; give one of nominal"),
        ([["a", 1]], "nominal", "int and str"),
    ],
)
def test_votes_without_an_alpha_are_refused(votes, level, message):
    with pytest.raises(ValueError, match=message):
        krippendorff_alpha(votes, level)


def test_cohens_kappa_of_a_table_worked_out_by_hand():
    # Both yes 20, first alone 5, second alone 10, both no 15: observed 0.7, expected 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa([*first, None, "yes"], [*second, "no", NAN]) == pytest.approx(0.4)


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_cohens_kappa_is_that_of_scikit_learn(weights):
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(3)
    first = generator.integers(-4, 5, size=200)
    second = np.clip(first + generator.integers(-2, 3, size=200), -4, 4)
    expected = metrics.cohen_kappa_score(first, second, weights=weights)
    assert cohen_kappa(first.tolist(), second.tolist(), weights) == pytest.approx(expected)


def test_weights_go_by_the_order_of_the_classes():
    first, second = ["bad", "fair", "good", "good"], ["fair", "fair", "good", "bad"]
    # Distances 1, 0, 0, 2 of 4; expected from shares (1 1 2)/4 and (1 2 1)/4: (2 + 2 + 1 + 1 + 4 + 4) / 16 = 14 / 16.
    assert cohen_kappa(first, second, "linear", ["bad", "fair", "good"]) == pytest.approx(1 - (3 / 4) / (14 / 16))
    with pytest.raises(ValueError, match="Weights need an order"):
        cohen_kappa(first, second, "linear")


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        ([1, 2], [1], {}, "2 and 1 votes"),
        ([None, 1], [1, NAN], {}, "no text in common"),
        ([], [], {}, "no text in common"),
        ([1, 1], [1, 1], {}, "label 1 to all 2"),
        ([1, 2], [1, 2], {"weights": "cubic"}, "weights is 'cubic'"),
        ([1, 2], [1, 2], {"classes": [1, 3]}, "label 2 is none"),
    ],
)
def test_raters_without_a_kappa_are_refused(first, second, options, message):
    with pytest.raises(ValueError, match=message):
        cohen_kappa(first, second, **options)


def test_pairwise_kappas_show_who_does_not_look():
    generator = np.random.default_rng(4)
    truth = generator.integers(0, 3, size=300)
    votes = np.stack([truth, np.where(generator.random(300) < 0.8, truth, 0), generator.integers(0, 3, size=300)], 1)
    kappas = pairwise_kappas(votes.tolist(), [["Ann", "Bob", "Eve"]] * 300)
    assert kappas["Ann", "Bob"] > 0.6
    assert abs(kappas["Ann", "Eve"]) < 0.15
    assert abs(kappas["Bob", "Eve"]) < 0.15
    assert kappas["Ann", "Bob"] == cohen_kappa(votes[:, 0].tolist(), votes[:, 1].tolist())


def test_pairwise_kappas_need_texts_in_common():
    with pytest.raises(ValueError, match="No two of 2 raters have 10 texts in common"):
        pairwise_kappas([[1, 2]] * 9)
    with pytest.raises(ValueError, match="No two of 1 raters"):
        pairwise_kappas([[1], [2]] * 20)


# --- reliability -----------------------------------------------------------------------------------------


def test_spearman_brown_and_its_inverse():
    assert spearman_brown(0.5, 2) == pytest.approx(2 / 3)
    assert spearman_brown(0.8, 0.5) == pytest.approx(0.4 / 0.6)
    assert raters_needed(0.5, 2 / 3) == 2
    assert raters_needed(0.2, 0.8) == 16  # 0.8 * 0.8 / (0.2 * 0.2)
    assert raters_needed(0.9, 0.5) == 1
    for bad in ((0.0, 0.8), (1.0, 0.8), (0.5, 1.0), (-0.1, 0.8), (NAN, 0.8)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            raters_needed(*bad)


def test_split_half_of_two_votes_is_their_correlation():
    assert split_half([[1, 1], [2, 2], [3, 3]]) == pytest.approx((1.0, 1.0))
    half, reliability = split_half(simulated(3000, raters=2)[1])
    assert half == pytest.approx(0.5, abs=0.05)  # between / (between + within)
    assert reliability == pytest.approx(2 / 3, abs=0.05)


def test_split_half_and_icc_agree_on_reliability():
    _, votes = simulated(3000, within=4.0, raters=8)
    assert split_half(votes, splits=20)[1] == pytest.approx(8 / 12, abs=0.03)
    assert RatingModel.fit(votes).reliability(8) == pytest.approx(8 / 12, abs=0.03)
    odd = [of_text[: 5 + row % 4] for row, of_text in enumerate(votes)]
    assert split_half(odd, splits=20)[1] == pytest.approx(6.5 / 10.5, abs=0.03)


@pytest.mark.parametrize("votes", [[[1], [2]], [[1, 2]], [[1, None], [NAN, 2]], [[2, 2], [2, 2]]])
def test_votes_that_have_no_halves_are_refused(votes):
    with pytest.raises(ValueError, match="two votes or more|cannot be correlated"):
        split_half(votes)
    with pytest.raises(ValueError, match="no texts"):
        split_half([])


# --- ceilings --------------------------------------------------------------------------------------------


def test_the_ceilings_are_what_the_truth_reaches():
    truth, votes = simulated(2000, between=1.0, within=2.0, raters=4)
    means = votes.mean(axis=1)
    assert correlation_ceiling(split_half(votes)[1]) == pytest.approx(np.corrcoef(truth, means)[0, 1], abs=0.02)
    for gap in (0.1, 0.5, 1.5):
        assert pairwise_ceiling(votes, gap) == pytest.approx(all_pairs_accuracy(truth, means, gap)[0], abs=0.01)


def test_ceilings_at_their_ends():
    assert correlation_ceiling(-0.2) == 0.0
    assert correlation_ceiling(0.81) == pytest.approx(0.9)
    assert pairwise_ceiling([[1, 1], [2, 2], [4, 4]]) == 1.0
    # Texts that differ by less than their raters: the truth is a coin.
    assert pairwise_ceiling([[0, 4], [1, 4], [0, 4]]) == 0.5
    with pytest.raises(ValueError, match="9 or more apart"):
        pairwise_ceiling([[1, 2], [3, 4]], 9.0)


def test_pairwise_ceiling_of_two_texts_worked_out_by_hand():
    # Two votes each; b = 1 / (1 + 2/2) = 1/2, so means are 1 apart with a variance of 1/2 each: Phi(1) = 0.8413.
    model = RatingModel(mean=1.0, between=1.0, within=2.0)
    assert pairwise_ceiling([[0, 0], [2, 2]], 0.5, model) == pytest.approx(0.8413, abs=1e-4)


# --- all of it -------------------------------------------------------------------------------------------


def test_agreement_metrics_of_simulated_votes():
    _, votes = simulated(800, within=1.0, raters=6)
    metrics = agreement_metrics([*votes.round().tolist(), [None, NAN], []], min_gap=0.5)
    assert (metrics["texts"], metrics["votes"]) == (800, 4800)
    assert [metrics[f"votes_per_text_{which}"] for which in ("min", "mean", "max")] == [6, 6.0, 6]
    low, high = metrics["alpha_interval_ci95"]
    assert low < metrics["alpha_interval"] < high
    assert high - low == pytest.approx(0.08, abs=0.04)
    # Rounding adds a variance of 1/12 to the votes.
    assert metrics["icc_1"] == pytest.approx(1 / (2 + 1 / 12), abs=0.05)
    assert metrics["alpha_interval"] == pytest.approx(metrics["icc_1"], abs=0.01)
    assert metrics["alpha_nominal"] < metrics["alpha_ordinal"] < 0.6
    assert metrics["single_rater_accuracy"] < metrics["pairwise_ceiling"] < 1.0
    assert metrics["raters_for_0.9"] == pytest.approx(9 * 13 / 12, abs=2)
    assert "cohen_kappa" not in metrics


def test_the_interval_of_alpha_is_that_of_texts_drawn_again():
    generator = np.random.default_rng(0)
    votes = (generator.normal(size=(120, 1)) + generator.normal(size=(120, 4))).round(1)
    drawn = [krippendorff_alpha(votes[rows].tolist()) for rows in generator.integers(120, size=(200, 120))]
    low, high = agreement_metrics(votes.tolist())["alpha_interval_ci95"]
    assert (high - low) / 3.92 == pytest.approx(np.std(drawn), rel=0.2)


def test_agreement_metrics_with_raters():
    votes = [[1, 1], [2, 2], [3, 1], [4, 4]] * 5
    metrics = agreement_metrics(votes, [["Ann", "Bob"]] * 20)
    first, second = zip(*votes, strict=True)
    assert metrics["cohen_kappa"] == cohen_kappa(first, second, "quadratic")
    assert metrics["rater_pairs"] == 1


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([], "no texts"),
        ([[], [None]], "0 texts with votes"),
        ([[1], [2], [3]], "at most 1 for one"),
        ([[3, 3], [3, 3]], "All 4 votes are 3"),
        ([["good", "bad"]], "must be numbers"),
    ],
)
def test_votes_that_cannot_be_measured_are_refused(votes, message):
    with pytest.raises(ValueError, match=message):
        agreement_metrics(votes)


def test_the_command_prints_json(tmp_path, capsys):
    file = tmp_path / "rated.jsonl"
    rows = [{"text": str(row), "given": [row % 5, (row + row % 2) % 5], "who": ["a", "b"]} for row in range(40)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main([str(file), "--votes", "given", "--raters", "who", "--wanted", "0.5"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["texts"] == 40
    assert {"alpha_interval", "cohen_kappa", "raters_for_0.5"} <= printed.keys()


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    file = tmp_path / "rated.jsonl"
    file.write_text('{"text": "a", "score": 1}\n')
    assert main([str(file)]) == 1
    assert "Row 0 has no column 'votes'; it has text, score" in capsys.readouterr().err
    assert main([str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl" in capsys.readouterr().err
    file.write_text("")
    assert main([str(file)]) == 1
    assert "no texts" in capsys.readouterr().err


# --- the guide -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guide():
    return (PROJECT / "docs/annotation_guide.md").read_text(encoding="utf-8")


def rated(split):
    lines = (PROJECT / f"starter/movie-ratings/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def table_row(guide, name):
    """The numbers of the row of a table that begins so."""
    row = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", guide, re.MULTILINE)
    return [float(number) for number in re.findall(r"\d+\.?\d*", row[1].replace(",", ""))]


@pytest.mark.slow
def test_the_guide_says_what_the_command_prints(guide, capsys):
    assert main([str(PROJECT / "starter/movie-ratings/train.jsonl")]) == 0
    printed = json.loads(capsys.readouterr().out)
    rows = re.findall(r"^\| (`.*?) \| (0\.[\d., ]+) \|", guide, re.MULTILINE)
    assert len(rows) == 7
    for row in rows:
        for name, said in zip(re.findall(r"`(\w+)`", row[0]), row[1].split(", "), strict=True):
            assert round(printed[name], len(said) - 2) == float(said), name
    assert printed["raters_for_0.9"] == 3
    assert (raters_needed(0.3, 0.8), raters_needed(0.3, 0.9), raters_needed(printed["icc_1"], 0.95)) == (10, 21, 5)


@pytest.mark.slow
def test_the_guide_says_how_reliable_k_votes_are(guide):
    votes = [row["votes"] for row in rated("train")]
    model, generator = RatingModel.fit(votes), np.random.default_rng(0)
    shuffled = [generator.permutation(of_text) for of_text in votes]
    for k, predicted, measured in zip(
        (1, 2, 3, 5, 7), table_row(guide, "predicted"), table_row(guide, "measured"), strict=True
    ):
        halves = [[of_text[part * k : (part + 1) * k].mean() for of_text in shuffled] for part in (0, 1)]
        assert model.reliability(k) == pytest.approx(predicted, abs=0.0005)
        assert np.corrcoef(*halves)[0, 1] == pytest.approx(measured, abs=0.0005)


@pytest.mark.slow
def test_the_guide_says_what_a_budget_of_votes_buys(guide):
    linear = pytest.importorskip("sklearn.linear_model")
    text = pytest.importorskip("sklearn.feature_extraction.text")
    train, test = rated("train"), rated("test")
    ratings = [row["score"] for row in test]
    texts, said = table_row(guide, "texts"), table_row(guide, "pairs in the right order")
    for k, count, accuracy in zip((1, 2, 4, 8, 15), texts, said, strict=True):
        assert 8000 // k == count
        found = []
        for seed in range(5):
            generator = np.random.default_rng(seed)
            rows = [train[row] for row in generator.permutation(len(train))[: 8000 // k]]
            means = [generator.permutation(row["votes"])[:k].mean() for row in rows]
            words = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
            model = linear.Ridge(alpha=2.0).fit(words.fit_transform([row["completion"] for row in rows]), means)
            scores = model.predict(words.transform([row["completion"] for row in test]))
            found.append(all_pairs_accuracy(scores, ratings)[0])
        assert np.mean(found) == pytest.approx(accuracy, abs=0.001)


@pytest.mark.slow
def test_the_guide_says_how_pairs_of_single_votes_go(guide):
    rows = rated("train")
    votes, means = [row["votes"] for row in rows], np.array([row["score"] for row in rows])
    pairs = np.random.default_rng(0).integers(len(rows), size=(40_000, 2))
    pairs = np.where((means[pairs[:, 0]] >= means[pairs[:, 1]])[:, None], pairs, pairs[:, ::-1])
    gaps = means[pairs[:, 0]] - means[pairs[:, 1]]
    # how often a vote for the first is above a vote for the second, ties counted half
    shares = np.array([mannwhitneyu(votes[a], votes[b]).statistic / (len(votes[a]) * len(votes[b])) for a, b in pairs])
    for low, high, said in ((0, 0.5, 0.58), (0.5, 1, 0.72), (1, 2, 0.85), (2, 9, 0.98)):
        assert f"{said}" in guide
        assert shares[(gaps >= low) & (gaps < high)].mean() == pytest.approx(said, abs=0.008)
    spreads = np.array([np.std(of_text, ddof=1) for of_text in votes])
    assert np.median(spreads) == pytest.approx(0.84, abs=0.005)
    assert (spreads > 1.5).mean() == pytest.approx(0.06, abs=0.005)
    assert np.mean([min(of_text) < 0 < max(of_text) for of_text in votes]) == pytest.approx(0.38, abs=0.005)


def test_names_in_the_guide_exist(guide):
    named = set(re.findall(r"`(?:RatingModel\.fit\(votes\)\.)?(\w+)(?:\([^`]*\))?`", guide))
    there = {
        *dir(agreement),
        *dir(votes_module),
        *dir(raters),
        *dir(weights),
        *dir(scoring_metrics),
        *dir(RatingModel),
    }
    columns = {"votes", "raters", "scores", "target", "agreement"}
    keys = set(agreement_metrics(SHROUT_FLEISS))
    assert {"rater_weights", "single_rater_accuracy"} <= named
    assert named <= there | columns | keys, named - there - columns - keys
