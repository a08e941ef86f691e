import json
import pickle

import numpy as np
import pytest
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge, TweedieRegressor

from rlhf_recipes.data.raters.agreement import all_pairs_accuracy
from rlhf_recipes.reward_modeling.linear.features import (
    NAMED,
    BagOfWords,
    Coefficient,
    Contribution,
    Embedding,
    FeatureSet,
    Keywords,
    Length,
)
from rlhf_recipes.reward_modeling.linear.model import LinearRewardModel
from tests.reward_modeling.linear.rated_words import COUNTS, GOOD_AND_BAD, VALUES, pairs, rated
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer


def by_name(table):
    return {row.feature.name: row for row in table}


# ---- ratings


def test_a_straight_line_by_hand():
    # good: 1 each, from ratings 0, 1, 2 for 0, 1, 2 of them
    model = LinearRewardModel([Keywords(("good",), "good")], LinearRegression())
    model.fit_ratings([""] * 3, ["film", "good film", "good good film"], [0.0, 1.0, 2.0])
    assert model.scores([""], ["a good one"]) == pytest.approx([1.0])
    assert model.base() == pytest.approx(1.0)  # the mean of the ratings
    (row,) = model.table()
    assert row.per_unit == pytest.approx(1.0)
    assert row.per_std == pytest.approx(np.std([0, 1, 2]))
    assert model.explain("", "film") == [Contribution("good", 0.0, pytest.approx(-1.0))]


def test_counted_words_find_what_each_is_worth():
    model = LinearRewardModel([COUNTS], "sklearn.linear_model:Ridge", {"alpha": 1e-6}).fit_ratings(*rated())
    # Each text has four words, so that what all words are worth together is shared with the intercept.
    found = {name: row.per_unit for name, row in by_name(model.table()).items()}
    for word, value in VALUES.items():
        assert found[f'"{word}"'] - found['"film"'] == pytest.approx(value, abs=1e-3)


def test_coefficients_are_those_of_ridge_on_standardized_columns():
    prompts, texts, ratings = rated(noise=0.5)
    counts = np.array([[text.split().count(word) for word in ("good", "bad")] for text in texts], dtype=float)
    theirs = Ridge(alpha=10.0).fit((counts - counts.mean(axis=0)) / counts.std(axis=0), ratings)
    model = LinearRewardModel(GOOD_AND_BAD, Ridge(alpha=10.0)).fit_ratings(prompts, texts, ratings)
    found = by_name(model.table())
    assert [found["good"].per_std, found["bad"].per_std] == pytest.approx(theirs.coef_.tolist())
    assert found["good"].per_unit == pytest.approx(theirs.coef_[0] / counts[:, 0].std())
    assert model.base() == pytest.approx(ratings.mean())


def test_the_default_orders_held_out_texts():
    model = LinearRewardModel([*NAMED, BagOfWords()]).fit_ratings(*rated(300))
    prompts, texts, ratings = rated(100, seed=1)
    assert all_pairs_accuracy(model.scores(prompts, texts), ratings, 0.5)[0] > 0.97


def test_a_wide_bag_of_words_is_fitted_sparse():
    prompts, texts, ratings = rated(1200)
    texts = [f"{text} name{row}" for row, text in enumerate(texts)]
    model = LinearRewardModel([Length(), {"BagOfWords": {"min_texts": 1}}]).fit_ratings(prompts, texts, ratings)
    assert len(model.features.features) == 5 + len(VALUES) + 1200
    prompts, texts, ratings = rated(100, seed=1)
    assert all_pairs_accuracy(model.scores(prompts, texts), ratings, 0.5)[0] > 0.95
    told = model.explain("", texts[0])
    assert model.base() + sum(item.contribution for item in told) == pytest.approx(model.scores([""], texts[:1])[0])


def test_a_feature_that_never_varied_says_nothing():
    model = LinearRewardModel().fit_ratings([""] * 100, *rated(100)[1:])  # without prompts nothing overlaps
    assert by_name(model.table())["prompt_overlap"].per_unit == 0.0
    together = model.scores(["good film"], [" good film"])
    apart = model.scores([""], ["good film good film"])
    assert together == pytest.approx(apart)


def test_no_feature_counts_further_than_training_went():
    model = LinearRewardModel([Keywords(("good",), "good")], LinearRegression())
    model.fit_ratings([""] * 3, ["film", "good", "good good"], [0.0, 1.0, 2.0])
    assert model.scores([""], ["good " * 1000]) == pytest.approx([2.0])
    assert model.explain("", "good " * 1000)[0] == Contribution("good", 1000.0, pytest.approx(1.0))


# ---- pairs


def test_pairs_are_bradley_terry_on_differences():
    prompts, chosen, rejected = pairs()
    difference = np.array([
        [c.split().count(word) - r.split().count(word) for word in ("good", "bad")]
        for c, r in zip(chosen, rejected, strict=True)
    ])  # fmt: skip
    # The same likelihood by hand: both ways round, with half the weight.
    theirs = LogisticRegression(fit_intercept=False, C=1e6, tol=1e-8)
    theirs.fit(np.concatenate([difference, -difference]), np.repeat([1, -1], len(difference)),
               sample_weight=np.full(2 * len(difference), 0.5))  # fmt: skip
    model = LinearRewardModel(GOOD_AND_BAD, LogisticRegression(fit_intercept=False, C=1e6, tol=1e-8))
    model.fit_pairs(prompts, chosen, rejected)
    found = by_name(model.table())
    assert [found["good"].per_unit, found["bad"].per_unit] == pytest.approx(theirs.coef_[0].tolist(), rel=1e-3)
    scores = model.scores(["", ""], ["good film", "bad film"])
    assert scores[0] - scores[1] == pytest.approx(theirs.coef_[0] @ [1, -1], rel=1e-3)


@pytest.mark.parametrize("regressor", [None, "sklearn.svm:LinearSVC"])
def test_pairs_put_held_out_texts_in_order(regressor):
    args = {"fit_intercept": False} if regressor else None
    model = LinearRewardModel([COUNTS], regressor, args).fit_pairs(*pairs())
    prompts, texts, ratings = rated(100, seed=1)
    assert all_pairs_accuracy(model.scores(prompts, texts), ratings, 0.5)[0] > 0.97


def test_one_pair_is_enough_to_begin_with():
    model = LinearRewardModel([Keywords(("good",), "good")]).fit_pairs([""], ["good"], ["film"])
    assert model.scores([""], ["good"])[0] > model.scores([""], ["film"])[0]


# ---- other regressors


def test_a_linear_regressor_is_known_by_what_it_predicts():
    prompts, texts, ratings = rated()
    for regressor in (Lasso(alpha=0.01), "sklearn.linear_model:ElasticNet", "sklearn.svm:LinearSVR"):
        assert LinearRewardModel([COUNTS], regressor).fit_ratings(prompts, texts, ratings).coefficients is not None
    kernel = LinearRewardModel([COUNTS], "sklearn.svm:SVR", {"kernel": "linear"}).fit_ratings(prompts, texts, ratings)
    assert kernel.coefficients is not None
    # It has coefficients too, but predicts their exponential.
    tweedie = TweedieRegressor(power=1, link="log")
    exponential = LinearRewardModel([COUNTS], tweedie).fit_ratings(prompts, texts, ratings + 10)
    assert exponential.coefficients is None


def test_what_is_not_linear_tells_what_each_feature_changed():
    model = LinearRewardModel(GOOD_AND_BAD, "sklearn.tree:DecisionTreeRegressor")
    model.fit_ratings([""] * 4, ["film", "good", "bad", "good bad"], [0.0, 1.0, -1.0, 0.0])
    scores = model.scores([""] * 2, ["good", "good bad"])
    assert scores == pytest.approx([1.0, 0.0])
    told = {item.feature: item for item in model.explain("", "good")}
    assert told["good"].value == 1.0
    assert told["good"].contribution >= 0
    with pytest.raises(ValueError, match="no coefficients"):
        model.table()


# ---- one prediction, read


def test_contributions_add_up_to_the_scores():
    prompts, texts, ratings = rated(noise=1.0)
    model = LinearRewardModel([*NAMED, BagOfWords()]).fit_ratings(prompts, texts, ratings)
    told = model.explain("", texts[0])
    assert model.base() + sum(item.contribution for item in told) == pytest.approx(model.scores([""], texts[:1])[0])
    sizes = [abs(item.contribution) for item in told]
    assert sizes == sorted(sizes, reverse=True)
    assert model.explain("", texts[0], top=3) == told[:3]


def test_only_words_that_are_there_are_told():
    model = LinearRewardModel([COUNTS]).fit_ratings(*rated())
    assert {item.feature for item in model.explain("", "a good good plot")} == {'"good"', '"plot"'}
    assert model.explain("", "zebra") == []
    assert model.scores([""], ["zebra"]) == pytest.approx([model.base()])


def test_an_embedding_is_told_as_one(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    folder = save_tiny(tmp_path / "encoder", tiny_classifier(tokenizer), tokenizer)
    prompts, texts, ratings = rated(40)
    model = LinearRewardModel([*GOOD_AND_BAD, Embedding(str(folder))]).fit_ratings(prompts, texts, ratings)
    told = model.explain("", texts[0])
    assert {item.feature for item in told} == {"good", "bad", "Embedding (32 numbers)"}
    assert next(item.value for item in told if item.feature.startswith("Embedding")) is None
    assert model.base() + sum(item.contribution for item in told) == pytest.approx(model.scores([""], texts[:1])[0])
    assert "Embedding (32 numbers)" in model.read_aloud("", texts[0])
    again = LinearRewardModel.load(model.save(tmp_path / "model"))
    assert again.scores(prompts, texts) == pytest.approx(model.scores(prompts, texts), abs=1e-9)


def test_a_score_is_read_aloud():
    model = LinearRewardModel([Keywords(("good",), "good"), Keywords(("bad",), "bad")], LinearRegression())
    model.fit_ratings([""] * 4, ["film", "good", "bad", "good bad"], [0.0, 1.0, -2.0, -1.0])
    assert model.read_aloud("", "good film") == (
        "Score 1.00, from -0.50 for an average text:\n  +1.00  bad = 0 times\n  +0.50  good = 1 times"
    )
    assert "  +0.50  1 other features" in model.read_aloud("", "good film", top=1)


# ---- calibration, intervals


def test_calibrated_scores_stay_within_the_scale_and_in_order():
    model = LinearRewardModel([COUNTS]).fit_pairs(*pairs())
    prompts, texts, ratings = rated(100, seed=1)
    curve = model.calibrate(prompts, texts, ratings, low=-8, high=8)
    scores = model.scores(prompts, texts)
    said = curve(scores)
    assert (np.argsort(said, kind="stable") == np.argsort(scores, kind="stable")).all()
    assert np.abs(said).max() < 8
    assert np.abs(said - ratings).mean() < 0.5
    assert "On the rating scale" in model.read_aloud("", texts[0])


def test_intervals_hold_what_words_are_worth_and_shrink_with_rows():
    widths = []
    for count in (100, 1000):
        model = LinearRewardModel(GOOD_AND_BAD).fit_ratings(*rated(count, noise=1.0))
        intervals = model.bootstrap(samples=100)
        assert intervals.shape == (2, 2)
        good = by_name(model.table())["good"]
        assert good.low < good.per_std < good.high
        widths.append(good.high - good.low)
    # The width goes with one over the root of the rows: 3.2 times.
    assert widths[0] / widths[1] == pytest.approx(10**0.5, rel=0.4)


def test_intervals_of_least_squares_are_those_of_its_formula():
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 3, size=400)
    ratings = counts + generator.normal(size=400)
    model = LinearRewardModel([Keywords(("good",), "good")], LinearRegression())
    model.fit_ratings([""] * 400, ["good " * count + "film" for count in counts], ratings)
    model.bootstrap(samples=400)
    (row,) = model.table()
    slope = np.polyfit(counts, ratings, 1)
    deviation = np.std(ratings - np.polyval(slope, counts), ddof=2) / np.sqrt(400)  # of the slope per std
    assert row.high - row.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_pairs_have_intervals_too():
    model = LinearRewardModel([COUNTS]).fit_pairs(*pairs())
    model.bootstrap(samples=30)
    great = by_name(model.table())['"great"']
    assert 0 < great.low < great.high


# ---- saving


@pytest.mark.parametrize("kind", ["ratings", "pairs"])
def test_a_reloaded_model_says_the_same(tmp_path, kind):
    model = LinearRewardModel([*NAMED, BagOfWords(max_n=2, min_texts=2)])
    model.fit_ratings(*rated(noise=1.0)) if kind == "ratings" else model.fit_pairs(*pairs())
    model.bootstrap(samples=5)
    prompts, texts, ratings = rated(50, seed=1)
    model.calibrate(prompts, texts, ratings)
    folder = model.save(tmp_path / "model")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "linear_reward.json", "linear_reward.npz"]
    again = LinearRewardModel.load(folder)
    assert again.scores(prompts, texts) == pytest.approx(model.scores(prompts, texts), abs=1e-9)
    assert again.calibration == model.calibration
    assert again.table() == model.table()
    assert again.explain("", texts[0]) == model.explain("", texts[0])
    assert again.trained_on == kind
    copy = pickle.loads(pickle.dumps(model))
    assert copy.scores(prompts, texts) == pytest.approx(model.scores(prompts, texts), abs=1e-12)


def test_a_pickled_regressor_is_read_only_if_trusted(tmp_path):
    prompts, texts, ratings = rated(100)
    args = {"n_estimators": 10, "random_state": 0}
    model = LinearRewardModel([COUNTS], "sklearn.ensemble:GradientBoostingRegressor", args)
    folder = model.fit_ratings(prompts, texts, ratings).save(tmp_path / "model")
    with pytest.raises(ValueError, match="GradientBoostingRegressor.*is a pickle.*trust=True"):
        LinearRewardModel.load(folder)
    again = LinearRewardModel.load(folder, trust=True)
    assert again.scores(prompts, texts) == pytest.approx(model.scores(prompts, texts), abs=1e-9)
    card = (folder / "README.md").read_text()
    assert "runs code" in card
    assert "trust=True" in card


def test_a_linear_model_needs_no_pickle(tmp_path):
    folder = LinearRewardModel([COUNTS]).fit_ratings(*rated()).save(tmp_path / "model")
    with np.load(folder / "linear_reward.npz", allow_pickle=False) as arrays:
        assert arrays["coefficients"].shape == (len(VALUES),)
    data = json.loads((folder / "linear_reward.json").read_text())
    assert data["linear"] is True
    card = (folder / "README.md").read_text()
    assert '| "great" | the words great | times |' in card
    assert "pickle" not in card


def test_files_that_are_not_such_a_model_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no linear_reward\.json"):
        LinearRewardModel.load(tmp_path)
    folder = LinearRewardModel([COUNTS]).fit_ratings(*rated()).save(tmp_path / "model")
    other = LinearRewardModel([Length()]).fit_ratings(*rated()).save(tmp_path / "other")
    data = json.loads((folder / "linear_reward.json").read_text())
    (other / "linear_reward.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="do not belong together"):
        LinearRewardModel.load(other)
    (folder / "linear_reward.json").write_text(json.dumps(data | {"format": 2}))
    with pytest.raises(ValueError, match="reads format 1"):
        LinearRewardModel.load(folder)


# ---- mistakes


@pytest.mark.parametrize(
    ("ratings", "message"),
    [([1.0], "one finite number"), ([1.0, np.nan], "one finite number"), ([1.0, 1.0], "not the same for all")],
)
def test_ratings_that_cannot_be_fitted(ratings, message):
    with pytest.raises(ValueError, match=message):
        LinearRewardModel().fit_ratings(["", ""], ["good", "bad"], ratings)


def test_pairs_that_cannot_be_fitted():
    model = LinearRewardModel(GOOD_AND_BAD)
    with pytest.raises(ValueError, match="2 prompts, 2 chosen and 1 rejected"):
        model.fit_pairs(["", ""], ["good", "good"], ["bad"])
    with pytest.raises(ValueError, match="nothing to learn"):
        model.fit_pairs([""], ["film"], ["plot"])
    for regressor in (
        Ridge(alpha=1.0),
        "sklearn.linear_model:LogisticRegression",
        "sklearn.tree:DecisionTreeClassifier",
    ):
        with pytest.raises(ValueError, match="without intercept"):
            LinearRewardModel(GOOD_AND_BAD, regressor).fit_pairs(
                [""] * 3, ["good", "good", "film"], ["bad", "", "bad"]
            )


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="import path"):
        LinearRewardModel(regressor_args={"alpha": 1})
    with pytest.raises(ValueError, match="package.module:Class"):
        LinearRewardModel(regressor="Ridge").fit_ratings(*rated(10))
    with pytest.raises(ValueError, match="not been fitted"):
        LinearRewardModel([Length()]).scores([""], ["good"])
    with pytest.raises(ValueError, match="fit the model first"):
        LinearRewardModel().save(tmp_path / "model")
    loaded = LinearRewardModel.load(LinearRewardModel([COUNTS]).fit_ratings(*rated(50)).save(tmp_path / "model"))
    with pytest.raises(ValueError, match="right after the fit"):
        loaded.bootstrap()
    with pytest.raises(ValueError, match="Make a new"):
        loaded.fit_ratings(*rated(50))


def test_no_rows_have_no_scores():
    assert LinearRewardModel([COUNTS]).fit_ratings(*rated(50)).scores([], []).tolist() == []


def test_one_row_of_the_table_is_a_record():
    (row, *_) = LinearRewardModel([COUNTS]).fit_ratings(*rated(50)).table()
    assert isinstance(row, Coefficient)
    assert (row.low, row.high) == (None, None)
    assert FeatureSet((COUNTS,)).groups[0].weighting == "count"
