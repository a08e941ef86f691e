import json

import numpy as np
import pytest
from datasets import Dataset

from rlhf_recipes.report import reward_figures
from rlhf_recipes.report.reward_figures import draw_bias, save_pictures
from rlhf_recipes.reward_modeling.bias.__main__ import main
from rlhf_recipes.reward_modeling.bias.correction import Correction
from rlhf_recipes.reward_modeling.bias.material import MOST_PAIRS, Material
from rlhf_recipes.reward_modeling.bias.measure import fit_correction, measure_bias, table
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

QUICK = {"changed_texts": 10, "exact_texts": 5}


class Known:
    """A score that is known of each text beforehand, and of other texts by their length."""

    __name__ = "known"

    def __init__(self, texts, scores, leaning=0.0):
        self.scores = dict(zip(texts, scores, strict=True))
        self.leaning = leaning

    def __call__(self, prompts, completions, **kwargs):
        return [self.scores.get(text, 0.0) + self.leaning * len(text) for text in completions]


def rated(rows=200, leaning=0.0, noise=1.0, seed=0):
    """Ratings of texts whose length says nothing of their worth, and a score of both."""
    generator = np.random.default_rng(seed)
    texts = [f"{row:04d}" + "x" * generator.integers(0, 60) for row in range(rows)]
    ratings = generator.normal(size=rows)
    scores = ratings + noise * generator.normal(size=rows)
    groups = generator.choice(["cats", "dogs"], size=rows).tolist()
    dataset = Dataset.from_dict({"completion": texts, "score": ratings, "topic": groups})
    return dataset, Known(texts, scores, leaning)


# --- the whole report ------------------------------------------------------------------------------------


def test_a_score_without_bias_and_one_that_leans_on_length():
    for leaning in (0.0, 0.05):
        dataset, reward = rated(leaning=leaning)
        report = measure_bias(reward, dataset, "ratings", **QUICK)
        length = report["covariates"]["length"]
        assert (length["partial_ci95"][0] > 0) is bool(leaning)
        assert (length["accuracy_difference_ci95"][0] > 0) is bool(leaning)
        json.dumps(report, allow_nan=False)


def test_figures_of_the_whole():
    dataset, reward = rated(60)
    report = measure_bias(reward, dataset, "ratings", **QUICK)
    scores, ratings = np.array(list(reward.scores.values())), np.array(dataset["score"])
    first, second = np.triu_indices(60, 1)
    asked = np.abs(ratings[first] - ratings[second]) >= 0.5
    right = np.sign(scores[first] - scores[second]) == np.sign(ratings[first] - ratings[second])
    assert report["texts"] == 60
    assert report["pairs"] == asked.sum()
    assert report["accuracy"] == pytest.approx(right[asked].mean())
    assert report["score_std"] == pytest.approx(scores.std())
    assert report["groups"] is None
    assert report["encodings"] == {}
    assert {of["holds"] for of in report["exact"].values()} == {True}


def test_a_covariate_that_hardly_any_text_has_is_not_judged():
    dataset, reward = rated(60)
    found = measure_bias(reward, dataset, "ratings", **QUICK)["covariates"]["format"]
    assert (found["varying"], found["partial"], found["accuracy_difference"]) == (0, None, None)
    starred = dataset.map(lambda row, index: {"completion": "* " * (index < 9) + row["completion"]}, with_indices=True)
    found = measure_bias(Known([], [], 1.0), starred, "ratings", **QUICK)["covariates"]["format"]
    assert (found["varying"], found["partial"]) == (9, None)


def test_texts_without_a_score_are_left_out_and_counted(caplog):
    dataset, reward = rated(60)
    gone = set(dataset["completion"][:7])
    partly = lambda prompts, completions: [  # noqa: E731
        None if text in gone else score for text, score in zip(completions, reward(prompts, completions), strict=True)
    ]
    report = measure_bias(partly, dataset, "ratings", **QUICK)
    assert (report["texts"], report["unscored"]) == (53, 7)
    assert "7 of 60 texts get no score" in caplog.text
    with pytest.raises(ValueError, match="nothing can be measured"):
        measure_bias(lambda prompts, completions: [None] * len(completions), dataset, "ratings", **QUICK)


def test_votes_tell_how_reliable_ratings_are():
    dataset, reward = rated(60)
    generator = np.random.default_rng(0)
    votes = [(rating + generator.normal(size=3)).tolist() for rating in dataset["score"]]
    report = measure_bias(reward, dataset.add_column("votes", votes), "ratings", **QUICK)
    assert report["covariates"]["length"]["partial_corrected"] is not None
    assert "partial_corrected" not in measure_bias(reward, dataset, "ratings", **QUICK)["covariates"]["length"]


# --- groups ----------------------------------------------------------------------------------------------


def test_a_group_that_the_score_favours_is_found():
    dataset, reward = rated(300, noise=0.3)
    for text, topic in zip(dataset["completion"], dataset["topic"], strict=True):
        reward.scores[text] += 1.0 if topic == "cats" else 0.0
    report = measure_bias(reward, dataset, "ratings", "topic", calibration=np.asarray, **QUICK)
    cats, dogs = (report["groups"]["groups"][name] for name in ("cats", "dogs"))
    assert cats["beyond_others"] == pytest.approx(1.0, abs=0.15)
    assert cats["beyond_others_ci95"][0] > 0.8
    assert dogs["beyond_others"] == pytest.approx(-cats["beyond_others"])
    assert cats["favoured_ci95"][0] > 0.1
    assert cats["texts"] + dogs["texts"] == 300


def test_small_groups_are_named_and_not_judged():
    dataset, reward = rated(60)
    dataset = dataset.remove_columns("topic").add_column("topic", ["few"] * 3 + [None] * 7 + ["many"] * 50)
    groups = measure_bias(reward, dataset, "ratings", "topic", **QUICK)["groups"]
    assert groups["too_small"] == {"few": 3}
    assert list(groups["groups"]) == ["many"]
    with pytest.raises(ValueError, match="no column 'author'.*topic"):
        measure_bias(reward, dataset, "ratings", "author", **QUICK)


def test_scores_are_put_on_the_scale_of_the_ratings():
    dataset, reward = rated(200, noise=0.1)
    scaled = lambda prompts, completions: [100 * s + 7 for s in reward(prompts, completions)]  # noqa: E731
    plain, other = (
        measure_bias(of, dataset, "ratings", "topic", **QUICK)["groups"]["groups"]["cats"] for of in (reward, scaled)
    )
    assert other["residual"] == pytest.approx(plain["residual"])
    assert abs(plain["residual"]) < 0.1


# --- feedback of every kind ------------------------------------------------------------------------------


def test_pairs_with_margins():
    dataset = Dataset.from_dict({"chosen": ["aa", "b"], "rejected": ["c", "dd"], "margin": [1.0, 2.0]})
    material = Material.of(dataset, "pairs")
    assert material.completions == ["aa", "b", "c", "dd"]
    assert material.pairs.tolist() == [[0, 2], [1, 3]]
    assert material.gaps.tolist() == [1.0, 2.0]
    report = measure_bias(Known([], [], 1.0), dataset, "pairs", **QUICK)
    assert report["accuracy"] == 0.5
    assert "partial" not in report["covariates"]["length"]


def test_a_score_that_is_length_is_right_where_the_longer_text_is_chosen():
    generator = np.random.default_rng(0)
    short, long = (["x" * n for n in generator.integers(*ends, size=40)] for ends in ((1, 20), (20, 40)))
    dataset = Dataset.from_dict({"chosen": long[:20] + short[20:], "rejected": short[:20] + long[20:]})
    length = measure_bias(Known([], [], 1.0), dataset, "pairs", **QUICK)["covariates"]["length"]
    assert (length["accuracy_more"], length["accuracy_less"]) == (1.0, 0.0)


def test_votes_and_targets_say_which_text_is_better():
    columns = {"chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"]}
    votes = Dataset.from_dict({**columns, "chosen_votes": [3, 1, 2], "rejected_votes": [1, 3, 2]})
    material = Material.of(votes, "votes")
    assert material.pairs.tolist() == [[0, 3], [4, 1]]  # and a tie, which says nothing
    targets = Dataset.from_dict({**columns, "target": [0.9, 0.2, 0.5]})
    material = Material.of(targets, "pairs")
    assert material.pairs.tolist() == [[0, 3], [4, 1]]
    assert material.gaps == pytest.approx([0.8, 0.6])
    with pytest.raises(ValueError, match="divided evenly"):
        Material.of(Dataset.from_dict({"chosen": ["a"], "rejected": ["b"], "target": [0.5]}), "pairs")


def test_only_answers_to_one_prompt_are_compared():
    columns = {"prompt": ["p", "q", "p", "q"], "completion": list("abcd"), "score": [1.0, 2.0, 3.0, 9.0]}
    material = Material.of(Dataset.from_dict(columns), "ratings")
    assert material.pairs.tolist() == [[2, 0], [3, 1]]
    assert material.units == ["p", "q", "p", "q"]
    one_each = Dataset.from_dict({**columns, "prompt": list("wxyz")})
    assert len(Material.of(one_each, "ratings").pairs) == 6


def test_of_many_pairs_some_are_drawn():
    dataset, _ = rated(2300)
    for rows in (300, 2300):
        pairs = Material.of(dataset.select(range(rows)), "ratings").pairs
        assert len(pairs) == len({tuple(sorted(pair)) for pair in pairs.tolist()}) == MOST_PAIRS
        gap = np.array(dataset["score"])[pairs[:, 0]] - np.array(dataset["score"])[pairs[:, 1]]
        assert gap.min() >= 0.5


def test_the_place_in_a_list_is_measured_within_lists():
    # People like the answers of some prompts better, but the score follows the place alone.
    generator = np.random.default_rng(0)
    lists, ranks = [], []
    for row in range(60):
        lists.append([f"{row}-{place}" for place in range(4)])
        ranks.append((1 + generator.permutation(4)).tolist())
    dataset = Dataset.from_dict({"completions": lists, "ranks": ranks})
    by_place = Known([text for of_list in lists for text in of_list], [row + p for row in range(60) for p in range(4)])
    place = measure_bias(by_place, dataset, "rankings", **QUICK)["covariates"]["place"]
    assert place["with_score"] == pytest.approx(1.0)
    assert place["partial"] == pytest.approx(1.0)
    assert place["accuracy_more"] == pytest.approx(1.0)
    flat = [text for of_list in lists for text in of_list]
    fair = Known(flat, [-rank for of_list in ranks for rank in of_list])
    report = measure_bias(fair, dataset, "rankings", **QUICK)
    assert report["accuracy"] == 1.0
    assert report["covariates"]["place"]["accuracy_difference"] == pytest.approx(0.0)


def test_best_and_worst():
    dataset = Dataset.from_dict({"completions": [["a", "b", "c"]], "best": [2], "worst": [0]})
    material = Material.of(dataset, "best_worst")
    assert material.ratings.tolist() == [-1.0, 0.0, 1.0]
    assert sorted(material.pairs.tolist()) == [[1, 0], [2, 0], [2, 1]]


@pytest.mark.parametrize(
    ("kind", "columns", "ratings"),
    [
        ("unpaired", {"label": [1.0, 0.0, 1.0]}, [1, 0, 1]),
        ("clicks", {"clicks": [1, 5, 0], "views": [2, 10, 4]}, [0.5, 0.5, 0]),
        ("dwell", {"dwell_seconds": [3.0, 1.0, 2.0]}, [3, 1, 2]),
    ],
)
def test_other_kinds_are_ratings(kind, columns, ratings):
    dataset = Dataset.from_dict({"completion": ["a", "b", "c"], **columns})
    assert Material.of(dataset, kind).ratings.tolist() == ratings


def test_kinds_that_cannot_be_measured_are_refused():
    with pytest.raises(ValueError, match="cannot be measured on steps"):
        Material.of(Dataset.from_dict({"completions": [["a"]], "labels": [[1.0]]}), "steps")
    with pytest.raises(ValueError, match="0.5 or more apart"):
        Material.of(Dataset.from_dict({"completion": ["a", "b"], "score": [1.0, 1.2]}), "ratings")


def test_conversations_are_measured_too():
    generator = np.random.default_rng(0)
    answers = [[{"role": "assistant", "content": "x" * n}] for n in generator.integers(1, 50, size=40)]
    prompts = [[{"role": "user", "content": str(row)}] for row in range(40)]
    dataset = Dataset.from_dict({"prompt": prompts, "completion": answers, "score": generator.normal(size=40)})

    def reward(prompts, completions, **kwargs):
        return [float(len(completion[-1]["content"])) for completion in completions]

    report = measure_bias(reward, dataset, "ratings", **QUICK)
    assert report["covariates"]["length"]["with_score"] == pytest.approx(1.0)
    assert report["changes"]["newline at the end"]["effect"] == pytest.approx(1 / report["score_std"])


# --- table, pictures and command -------------------------------------------------------------------------


def test_the_table_says_what_was_found():
    dataset, reward = rated(100, 0.05)
    report = measure_bias(reward, dataset, "ratings", "topic", min_group=1000, **QUICK)
    text = table(report)
    partial = report["covariates"]["length"]["partial"]
    assert f"  {partial:+.2f} (" in text
    assert "Not judged, fewer than 1000 texts: cats" in text
    assert "batch                 0           holds" in text


def test_pictures_of_one_report_and_of_several(tmp_path):
    dataset, reward = rated(100, 0.05)
    report = measure_bias(reward, dataset, "ratings", "topic", **QUICK)
    titles = [title for title, _ in draw_bias(report)]
    assert titles == [
        "Beyond people's ratings",
        "The same text, edited",
        "Scores of groups",
        "Favoured more than by people",
    ]
    drawing = draw_bias(report)[0][1]
    assert drawing.startswith("<svg")
    assert ">length<" in drawing
    assert ">format<" not in drawing  # which no text has
    assert ">after<" in draw_bias({"before": report, "after": report})[0][1]
    written = save_pictures(report, tmp_path)
    assert [path.name for path in written] == [f"bias_{number}.png" for number in range(1, 5)]
    assert written[0].read_bytes().startswith(b"\x89PNG")


def test_the_command(tmp_path, capsys, monkeypatch):
    tokenizer = tiny_tokenizer("bert")
    folder = save_tiny(tmp_path / "model", tiny_classifier(tokenizer), tokenizer)
    dataset, _ = rated(40)
    dataset.to_json(tmp_path / "rows.jsonl")
    common = ["--model", str(folder), "--dataset_name", str(tmp_path / "rows.jsonl"), "--dataset_test_split", "train"]
    common += ["--group_column", "topic", "--min_group", "5", "--changed_texts", "5"]
    main([*common, "--output_dir", str(tmp_path / "before")])
    before = json.loads((tmp_path / "before" / "bias.json").read_text())
    assert before["kind"] == "ratings"
    assert before["encodings"]["padding on the right"]["largest"] < 1e-3
    assert set(before["groups"]["groups"]) == {"cats", "dogs"}
    assert (tmp_path / "before" / "bias_1.png").is_file()
    assert "What must be so" in capsys.readouterr().out

    monkeypatch.setattr(reward_figures, "save_pictures", lambda *given: [])  # seen above
    main([*common, "--output_dir", str(tmp_path / "both"), "--correct", "length", "--correct_on", "train"])
    after = json.loads((tmp_path / "both" / "bias_corrected.json").read_text())
    # Fitted to the very rows that are measured, nothing is left.
    assert after["covariates"]["length"]["partial"] == pytest.approx(0.0, abs=1e-6)
    assert json.loads((tmp_path / "both" / "bias.json").read_text()) == before
    assert Correction.load(tmp_path / "both" / "correction.json").names == ("length",)
    assert "CORRECTED" in capsys.readouterr().out


def test_a_correction_of_pairs():
    generator = np.random.default_rng(0)
    quality, length = generator.normal(size=(2000, 2)), generator.integers(1, 60, size=(2000, 2))
    texts = [[f"{row}{side}".ljust(10 + n, "x") for side, n in enumerate(of)] for row, of in enumerate(length)]
    first = generator.random(2000) < 1 / (1 + np.exp(-2 * (quality[:, 0] - quality[:, 1])))
    chosen = [pair[0 if won else 1] for pair, won in zip(texts, first, strict=True)]
    rejected = [pair[1 if won else 0] for pair, won in zip(texts, first, strict=True)]
    reward = Known(sum(texts, []), quality.ravel(), leaning=0.05)
    dataset = Dataset.from_dict({"chosen": chosen, "rejected": rejected})
    correction = fit_correction(reward, dataset, "pairs", ["length"])
    assert correction.coefficients == pytest.approx([0.05], abs=0.01)
