import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge, TweedieRegressor

from rlhf_recipes.data.raters.agreement import all_pairs_accuracy
from rlhf_recipes.reward_modeling.linear.features import NAMED, BagOfWords, Embedding, FeatureSet, Keywords, Length
from rlhf_recipes.reward_modeling.linear.model import (
    Coefficient,
    Contribution,
    LinearRewardModel,
    plot_coefficients,
    plot_importance,
    r2,
)
from rlhf_recipes.reward_modeling.linear.reward import LinearReward
from tests.recipes.tiny_runs import check_page
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

RECIPE = Path(__file__).parents[3] / "recipes/reward_linear.py"

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


def test_weights_are_those_of_the_rows():
    texts, ratings = ["good", "good", "film"], [0.0, 3.0, 0.0]
    model = LinearRewardModel([Keywords(("good",), "good")], LinearRegression())
    assert model.fit_ratings([""] * 3, texts, ratings).scores([""], ["good"]) == pytest.approx([1.5])
    weighted = model.fit_ratings([""] * 3, texts, ratings, weights=[2, 1, 1])
    assert weighted.scores([""], ["good"]) == pytest.approx([1.0])


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
    with pytest.raises(ValueError, match="no sum over features"):
        model.contributions([""], ["good"])


# ---- one prediction, read


def test_contributions_add_up_to_the_scores():
    prompts, texts, ratings = rated(noise=1.0)
    model = LinearRewardModel([*NAMED, BagOfWords()]).fit_ratings(prompts, texts, ratings)
    parts = model.contributions(prompts[:5], texts[:5])
    assert parts.shape == (5, len(model.features.features))
    assert model.base() + parts.sum(axis=1) == pytest.approx(model.scores(prompts[:5], texts[:5]))
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


# ---- calibration, intervals, importance


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


def test_what_does_not_count_is_not_important():
    prompts, texts, ratings = rated(300)
    groups = [Keywords(("great", "good"), "praise"), Keywords(("awful", "bad"), "blame"), Keywords(("film",), "film")]
    model = LinearRewardModel(groups, LinearRegression()).fit_ratings(prompts, texts, ratings)
    for measure in ("r2", "pairwise_accuracy"):
        found = {one.name: one for one in model.importance(*rated(100, seed=1), measure=measure)}
        assert set(found) == {"praise", "blame", "film"}
        assert found["praise"].mean > 0.1
        assert found["blame"].mean > 0.1
        assert abs(found["film"].mean) < 0.02
        assert found["praise"].std > 0


def test_importance_of_all_there_is_takes_all_away():
    # Of a model that is right with one feature, shuffling leaves r of 0 with it: R2 falls by 2 on average.
    prompts, texts = [""] * 200, ["good"] * 100 + ["film"] * 100
    ratings = np.repeat([1.0, 0.0], 100)
    model = LinearRewardModel([Keywords(("good",), "good")], LinearRegression()).fit_ratings(prompts, texts, ratings)
    (one,) = model.importance(prompts, texts, ratings, measure="r2", repeats=50)
    assert one.mean == pytest.approx(2.0, abs=0.1)
    (one,) = model.importance(prompts, texts, ratings, repeats=50)
    assert one.mean == pytest.approx(0.5, abs=0.05)


def test_a_bag_of_words_is_shuffled_as_a_whole():
    model = LinearRewardModel([Length(), BagOfWords()]).fit_ratings(*rated(300))
    found = {one.name: one.mean for one in model.importance(*rated(100, seed=1))}
    bag = f"BagOfWords ({len(VALUES)} numbers)"
    assert set(found) == {"characters", "words", "sentences", "word_length", "sentence_length", bag}
    assert found[bag] > 0.3
    pairwise = {one.name: one.mean for one in model.importance_for_pairs(*pairs(100, seed=1))}
    assert pairwise[bag] > 0.3


def test_r2():
    assert r2([1, 2, 3], [1, 2, 3]) == 1
    assert r2([2, 2, 2], [1, 2, 3]) == 0
    assert r2([3, 2, 1], [1, 2, 3]) == -3
    with pytest.raises(ValueError, match="no variance"):
        r2([1, 2], [1, 1])


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


# ---- pictures


def test_pictures_show_something(tmp_path):
    model = LinearRewardModel([COUNTS]).fit_ratings(*rated(noise=1.0))
    model.bootstrap(samples=20)
    for path in (
        plot_coefficients(model.table(), tmp_path / "coefficients.png"),
        plot_importance(model.importance(*rated(100, seed=1), repeats=3), tmp_path / "importance.png"),
    ):
        pixels = imread(path)[..., :3]
        assert pixels.shape[1] > pixels.shape[0] > 200
        blue = (pixels[..., 2] - pixels[..., 0]) > 0.2
        assert blue.mean() > 0.01


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
    with pytest.raises(ValueError, match="'pairwise_accuracy' or 'r2'"):
        LinearRewardModel([COUNTS]).fit_ratings(*rated(50)).importance(*rated(10), measure="mae")
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


# ---- the recipe


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("reward_linear_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def write_rows(folder, **splits):
    folder.mkdir()
    for split, columns in splits.items():
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def as_ratings(count, seed):
    _, texts, ratings = rated(count, seed)
    return {"completion": texts, "score": ratings.tolist(), "votes": [[r - 1, r, r + 1] for r in ratings.tolist()]}


def test_the_recipe_on_ratings(main, tmp_path, capsys):
    splits = {name: as_ratings(count, seed) for seed, (name, count) in
              enumerate({"train": 200, "validation": 80, "test": 80}.items())}  # fmt: skip
    data, output = write_rows(tmp_path / "data", **splits), tmp_path / "run"
    features = ["Length", json.dumps({"BagOfWords": {"min_texts": 1}})]
    main(["--dataset_name", data, "--output_dir", str(output), "--features", *features, "--bootstrap_samples", "5"])
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["pairwise_accuracy"] > 0.97
    assert metrics["r2"] > 0.9
    assert metrics["single_rater_accuracy"] > 0.9
    assert metrics["features"] == 5 + len(VALUES)
    assert {"coefficients.json", "coefficients.png", "importance.json", "importance.png", "config.yaml"} <= {
        file.name for file in output.iterdir()
    }
    check_page(output, "pairwise_accuracy", "r2", says=("What it is worth",))
    assert json.loads((output / "coefficients.json").read_text())[0]["low"] is not None
    good, bad = LinearReward(output)(["", ""], ["good great film", "bad awful film"])
    assert -9 < bad < -1 < 1 < good < 9
    assert "from" in capsys.readouterr().out


def test_the_recipe_on_pairs_and_without_a_validation_split(main, tmp_path):
    splits = {}
    for seed, name in enumerate(("train", "test")):
        _, chosen, rejected = pairs(100, seed)
        splits[name] = {"chosen": chosen, "rejected": rejected}
    data, output = write_rows(tmp_path / "data", **splits), tmp_path / "run"
    main(["--dataset_name", data, "--output_dir", str(output), "--features", json.dumps(COUNTS)])
    assert json.loads((output / "metrics.json").read_text())["pairwise_accuracy"] > 0.97
    good, bad = LinearReward(output)(["", ""], ["good film", "bad film"])
    assert good > bad
