import pytest

from rlhf_recipes.reward_modeling.evaluation.subsets import REWARD_BENCH_SECTIONS, subset_accuracy

CHOSEN = [1.0, 2.0, 0.0, 5.0, 1.0, 1.0]
REJECTED = [0.0, 2.0, 1.0, 4.0, 0.0, 3.0]
SUBSETS = ["easy", "easy", "hard", "hard", "hard", "code"]


def test_subset_accuracy_worked_out_by_hand():
    metrics = subset_accuracy(CHOSEN, REJECTED, SUBSETS)
    assert metrics["pairwise_accuracy"] == pytest.approx(3.5 / 6)
    assert metrics["pairs"] == 6
    assert {name: (part["accuracy"], part["pairs"]) for name, part in metrics["subsets"].items()} == {
        "easy": (0.75, 2),
        "hard": (2 / 3, 3),
        "code": (0.0, 1),
    }
    low, high = metrics["subsets"]["easy"]["accuracy_ci95"]
    assert low < 0.5
    assert high > 0.98
    assert metrics["subsets"]["code"]["accuracy_ci95"] is None  # of one row
    assert "score" not in metrics


def test_sections_weigh_subsets_by_rows_or_as_told():
    by_rows = subset_accuracy(CHOSEN, REJECTED, SUBSETS, sections={"chat": ["easy", "hard"], "reason": ["code"]})
    assert by_rows["sections"]["chat"]["accuracy"] == pytest.approx(3.5 / 5)
    assert by_rows["score"] == pytest.approx((0.7 + 0.0) / 2)
    told = subset_accuracy(
        CHOSEN,
        REJECTED,
        SUBSETS,
        sections={"chat": {"easy": 1, "hard": 3}, "reason": {"code": 9}},
        section_weights={"reason": 0.5},
    )
    assert told["sections"]["chat"]["accuracy"] == pytest.approx((0.75 + 2) / 4)
    assert told["score"] == pytest.approx(0.6875 / 1.5)
    low, high = told["score_ci95"]
    assert low < told["score"] < high


def test_reward_bench_sections_add_up():
    weights = {section: sum(subsets.values()) for section, subsets in REWARD_BENCH_SECTIONS.items()}
    assert weights == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 2 * 984}
    # 2,985 rows, of which math-prm has 447 and not 984.
    assert sum(weights.values()) - 984 + 447 == 2985
    names = [name for subsets in REWARD_BENCH_SECTIONS.values() for name in subsets]
    chosen = [0.0 if name == "math-prm" else 1.0 for name in names]
    metrics = subset_accuracy(chosen, [0.5] * len(names), names, sections=REWARD_BENCH_SECTIONS)
    assert metrics["sections"]["Reasoning"]["accuracy"] == pytest.approx(0.5)
    assert metrics["score"] == pytest.approx(3.5 / 4)


def test_prompts_are_drawn_whole_within_a_subset():
    # Four rows of one right prompt and four of one wrong: rows would give about 0.5 +- 0.35.
    chosen, subsets = [1.0] * 4 + [0.0] * 4, ["all"] * 8
    by_prompt = subset_accuracy(chosen, [0.5] * 8, subsets, [0] * 4 + [1] * 4)
    assert by_prompt["pairwise_accuracy_ci95"] == pytest.approx([0.0, 1.0], abs=1e-3)
    low, high = subset_accuracy(chosen, [0.5] * 8, subsets)["pairwise_accuracy_ci95"]
    assert 0.1 < low < high < 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sections": {"chat": ["easy", "medium"]}}, r"subsets without rows: \['medium'\]"),
        ({"sections": {"chat": []}}, "none are named"),
        ({"sections": {"chat": ["easy"]}, "section_weights": {"talk": 1.0}}, "section_weights names"),
        ({"prompts": ["a"]}, "There are 1 prompts for 6 rows"),
    ],
)
def test_sections_without_rows_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        subset_accuracy(CHOSEN, REJECTED, SUBSETS, **options)
    with pytest.raises(ValueError, match="There are 2 subsets for 6 rows"):
        subset_accuracy(CHOSEN, REJECTED, ["easy", "hard"])
