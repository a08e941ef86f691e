"""What the benchmark makes of ratings; its runs take minutes and are not repeated here."""

from benchmarks.reward_losses import RUNS, feedback_of
from rlhf_recipes.reward_modeling.losses import LOSSES

ROWS = [
    {"completion": text, "score": score, "votes": votes}
    for text, score, votes in (("a", 2.0, [2, 2]), ("b", -1.0, [-2, 0]), ("c", 0.5, [1, 0]), ("d", 3.0, [3, 3]))
]
SCORES = {row["completion"]: row["score"] for row in ROWS}


def test_each_text_is_in_the_feedback_once():
    for kind, _, _ in RUNS:
        rows = feedback_of(ROWS, kind)
        texts = [
            text
            for row in rows
            for text in row.get("completions", [row.get("completion"), row.get("chosen"), row.get("rejected")])
            if text is not None
        ]
        assert len(texts) == len(set(texts))
        assert kind == "thumbs" or set(texts) == {"a", "b", "c", "d"}


def test_feedback_says_what_the_ratings_say():
    (ranking,) = feedback_of(ROWS, "rankings")
    assert dict(zip(ranking["completions"], ranking["ranks"], strict=True)) == {"d": 1, "a": 2, "c": 3, "b": 4}
    (picked,) = feedback_of(ROWS, "best_worst")
    assert (picked["completions"][picked["best"]], picked["completions"][picked["worst"]]) == ("d", "b")
    for pair in feedback_of(ROWS, "pairs_with_margin"):
        assert pair["margin"] * 4 == SCORES[pair["chosen"]] - SCORES[pair["rejected"]] > 0
    for pair in feedback_of(ROWS, "votes"):
        assert pair["chosen_votes"] > 5.0
        assert pair["chosen_votes"] + pair["rejected_votes"] == 10.0
    for row in feedback_of(ROWS, "thumbs"):
        assert row["label"] is (row["completion"] != "b")
    (worst,) = [row["scores"] for row in feedback_of(ROWS, "objectives") if row["completion"] == "b"]
    assert worst == {"rating": -1.0, "agreement": -1.0}


def test_every_loss_of_texts_is_in_the_table():
    assert {loss for _, loss, _ in RUNS} == set(LOSSES) - {"process"}
