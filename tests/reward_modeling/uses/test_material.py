"""Feedback for a compression: pairs and labels, what is measured of them, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.reward_modeling.uses.material import FeedbackMaterial
from tests.recipes.tiny_runs import write_splits
from tests.tiny import tiny_classifier, tiny_tokenizer

ARGS = {"loss": "auto", "loss_args": None, "min_gap": 0.5, "calibration_rows": 4, "per_device_eval_batch_size": 4,
        "samples": 2, "seed": 0, "disable_tqdm": True}  # fmt: skip
PAIRS = [{"chosen": f"good {row}", "rejected": f"a bad film {row}"} for row in range(6)]
KINDS = {
    "pairs": PAIRS,
    "ratings": [{"completion": f"film {'good ' * row}", "score": float(row)} for row in range(6)],
    "rankings": [{"completions": [f"good {row}", f"bad {row}", "so so"], "ranks": [1, 3, 2]} for row in range(4)],
    "best_worst": [{"completions": [f"good {row}", f"bad {row}", "so so"], "best": 0, "worst": 1} for row in range(4)],
    "votes": [
        {"chosen": f"a {row}", "rejected": f"b {row}", "chosen_votes": 1, "rejected_votes": 4} for row in range(4)
    ],
    "unpaired": [{"completion": f"film {row}", "label": row % 2 == 0} for row in range(6)],
}


def material(folder, rows, **options):
    data = DataArguments(write_splits(folder / "rows", rows))
    return FeedbackMaterial(
        data, SimpleNamespace(**ARGS | options), tiny_tokenizer("bert"), folder, torch.device("cpu")
    )


def score(model, tokenizer, text):
    with torch.no_grad():
        return float(model(**tokenizer(text, return_tensors="pt")).logits[0, 0])


def test_pairs_are_right_where_the_chosen_text_scores_higher(tmp_path):
    made = material(tmp_path, PAIRS)
    model = tiny_classifier(made.tokenizer).eval()
    margins = np.array([score(model, made.tokenizer, r["chosen"]) - score(model, made.tokenizer, r["rejected"])
                        for r in PAIRS])  # fmt: skip
    columns = made.measure(model)["columns"]
    assert columns["pairwise_accuracy"][0] == (margins > 0).astype(float).tolist()
    np.testing.assert_allclose(columns["log_loss"][0], np.log1p(np.exp(-margins)), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_feedback_is_read(tmp_path, kind):
    made = material(tmp_path, KINDS[kind])
    items, pairs, labels = made.test
    assert made.kind == ("labels" if kind == "unpaired" else "pairs")
    assert len(labels) == (6 if kind == "unpaired" else 0)
    first = {(items[a][1].split()[0], items[b][1].split()[0]) for a, b in pairs}
    wanted = {
        "pairs": {("good", "a")},
        "votes": {("b", "a")},
        "rankings": {("good", "bad")},
        "best_worst": {("good", "bad")},
    }
    assert first == wanted.get(kind, first)
    if kind == "ratings":
        assert all(items[a][1].count("good") > items[b][1].count("good") for a, b in pairs)
    assert all(len(batch["input_ids"]) % 2 == 0 for batch in made.calibration)
    batch = made.collate([made.train[row] for row in range(3)])
    model = tiny_classifier(made.tokenizer)
    loss = made.loss(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch)
    loss.backward()
    assert torch.isfinite(loss)
    own, texts = made.counts(batch).tolist()
    assert texts == len(batch["input_ids"])
    assert own > 0


def test_the_pairs_of_ratings_that_are_measured_are_those_of_every_seed(tmp_path):
    first, second = (material(tmp_path, KINDS["ratings"], seed=seed).test[1] for seed in (0, 1))
    assert first == second


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give 2 or more"):
        material(tmp_path, PAIRS[:1])
    with pytest.raises(ValueError, match="bradley_terry, and ratings are no pairs"):
        material(tmp_path, KINDS["ratings"], loss="bradley_terry")
    with pytest.raises(ValueError, match="one output"):
        material(tmp_path, KINDS["ratings"], loss="classification")
