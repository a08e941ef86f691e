"""The benchmark of transfer: its bootstrap against slow ones that resample rows, and the whole of it on tiny files."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from rlhf_recipes.data.raters.agreement import all_pairs_accuracy, all_pairs_interval

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def transfer():
    """Imported as `python benchmarks/transfer.py` does: its folder comes first on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROJECT / "benchmarks")
        yield importlib.import_module("transfer")
    sys.modules.pop("transfer", None)


def settings(samples=200, seed=3):
    return argparse.Namespace(min_gap=0.5, samples=samples, seed=seed)


@pytest.fixture
def scored():
    """40 ratings in steps of a half, so that gaps lie on the edge, and scores with ties that go with them."""
    generator = np.random.default_rng(0)
    ratings = generator.integers(-8, 9, size=40) / 2
    return np.round(ratings + generator.normal(size=40) * 2), ratings


# ---- the bootstrap


def test_where_each_text_is_its_own_document_it_is_the_interval_over_texts(transfer, scored):
    drawn = transfer.bootstrap(*scored, range(40), settings())
    assert transfer.interval(drawn.pairwise_accuracy) == pytest.approx(all_pairs_interval(*scored), abs=0.03)


def test_documents_are_drawn_as_a_whole(transfer, scored):
    """Against rows that are written down as often as their document is drawn."""
    scores, ratings = scored
    documents = [f"d{number % 7}" for number in range(40)]  # not side by side
    drawn = transfer.bootstrap(scores, ratings, documents, settings(samples=20))
    weights = np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), size=20)
    for sample in range(20):
        rows = [row for row in range(40) for _ in range(weights[sample, row % 7])]
        accuracy, _ = all_pairs_accuracy(scores[rows], ratings[rows])
        assert drawn.pairwise_accuracy[sample] == pytest.approx(accuracy, abs=1e-6)
        assert drawn.pearson[sample] == pytest.approx(np.corrcoef(scores[rows], ratings[rows])[0, 1], abs=1e-9)


def test_copies_in_one_document_add_no_certainty(transfer, scored):
    scores, ratings = scored
    once = transfer.bootstrap(scores, ratings, range(40), settings())
    tripled = transfer.bootstrap(np.repeat(scores, 3), np.repeat(ratings, 3), np.repeat(range(40), 3), settings())
    for alone, copied in zip(once, tripled, strict=True):
        assert copied == pytest.approx(alone, abs=1e-6)


def test_samples_without_a_pair_or_without_spread_are_left_out_of_the_interval(transfer):
    drawn = transfer.bootstrap([0.0, 1.0], [0.0, 1.0], ["a", "b"], settings())
    assert np.isnan(drawn.pairwise_accuracy).any(), "half of the samples hold one of the two texts twice"
    assert transfer.interval(drawn.pairwise_accuracy) == [1.0, 1.0]
    assert transfer.interval(np.array([np.nan])) is None


# ---- the whole of it


@pytest.fixture
def data(tmp_path):
    """`films` without documents and `shops` with three; the score of each text is its number of plus signs."""
    for name, of_split in {"films": "{split} {}", "shops": "shop {split} {}"}.items():
        (tmp_path / name).mkdir()
        for split in ("train", "validation", "test"):
            rows = [
                {"completion": of_split.format("+" * plus, split=split), "score": float(plus), "votes": [plus, plus]}
                for plus in range(1, 5)
            ]
            if name == "shops":
                rows = [row | {"group": f"{split}{number // 2}"} for number, row in enumerate(rows)]
            (tmp_path / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_rewards.py").write_text(
        "def pluses(completions, **kwargs):\n    return [float(text.count('+')) for text in completions]\n"
        "def minuses(completions, **kwargs):\n    return [-float(text.count('+')) for text in completions]\n"
        "def shy(completions, **kwargs):\n    return [None for text in completions]\n"
    )
    return tmp_path


def report_of(transfer, data, capsys, *rewards):
    where = [str(data / name) for name in ("films", "shops")]
    arguments = [*rewards, "--datasets", *where, "--whole", *where, "--samples", "20"]
    capsys.readouterr()  # what libraries write when a test first imports them
    transfer.main([*arguments, "--output", str(data / "report.json")])
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert json.loads(line) == json.loads((data / "report.json").read_text())
    return json.loads(line), err


def test_it_prints_one_line_and_tables(transfer, data, capsys):
    pluses, minuses = f"{data}/my_rewards.py:pluses", f"{data}/my_rewards.py:minuses"
    report, tables = report_of(transfer, data, capsys, pluses, minuses)
    shops = report["test"][str(data / "shops")]
    assert (shops["texts"], shops["documents"], shops["pairs"]) == (4, 2, 6)
    assert shops["single_rater_accuracy"] == 1.0, "both votes of a text are the same"
    right, wrong = shops["rewards"][pluses], shops["rewards"][minuses]
    assert (right["pairwise_accuracy"], wrong["pairwise_accuracy"]) == (1.0, 0.0)
    assert (right["pearson"], wrong["pearson"]) == (pytest.approx(1), pytest.approx(-1))
    # VADER knows none of the words: a tie counts half, and what does not vary has no correlation.
    assert shops["rewards"]["vader"]["pairwise_accuracy"] == 0.5
    assert (shops["rewards"]["vader"]["pearson"], shops["rewards"]["vader"]["pearson_ci95"]) == (None, None)
    assert (right["over_vader"], right["over_vader_ci95"]) == (0.5, [0.5, 0.5])
    assert shops["rewards"]["length"]["pairwise_accuracy"] == 1.0, "more signs are longer"
    # Of all splits: 12 texts, of 3 with each rating, so 6 pairs of ratings x 3 x 3.
    films = report["whole"][str(data / "films")]
    assert (films["texts"], films["documents"], films["pairs"]) == (12, 12, 54)
    assert "| one human rater | 1.000 | 1.000 |" in tables
    assert f"| {pluses} | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) |" in tables


def test_a_reward_is_not_measured_on_rows_that_it_was_trained_on(transfer, data, capsys, monkeypatch):
    from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    folder = save_tiny(data / "reward", tiny_classifier(tokenizer), tokenizer)
    (folder / "config.yaml").write_text(yaml.safe_dump({"dataset_name": "films"}))
    monkeypatch.chdir(data)  # as the recipe was run: paths in a config are relative
    report, _ = report_of(transfer, data, capsys, "./reward")
    assert report["trained_on"] == {"./reward": ["films"]}
    assert "./reward" in report["test"][str(data / "films")]["rewards"]
    assert "./reward" not in report["whole"][str(data / "films")]["rewards"]
    assert "./reward" in report["whole"][str(data / "shops")]["rewards"]


def test_a_reward_that_is_silent_is_an_error(transfer, data, capsys):
    with pytest.raises(ValueError, match="has no number for 12 of 12 texts, such as 'test [+]'"):
        report_of(transfer, data, capsys, f"{data}/my_rewards.py:shy")


def test_linear_models_are_known_by_their_file(transfer, tmp_path):
    pytest.importorskip("sklearn")
    from rlhf_recipes.reward_modeling.linear.features import FeatureSet
    from rlhf_recipes.reward_modeling.linear.model import LinearRewardModel

    model = LinearRewardModel(FeatureSet(("Length",)))
    texts = ["a", "a b", "a b c", "a b c d"] * 5
    model.fit_ratings([""] * 20, texts, [1.0, 2.0, 3.0, 4.0] * 5).save(tmp_path / "linear")
    short, long = transfer.load(str(tmp_path / "linear"))(["a b", "a b c d"])
    assert short < long
