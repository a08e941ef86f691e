"""`recipes/best_of_n.py`, run in process on tiny models, and on candidates that are given."""

import json
from pathlib import Path

import pytest

from rlhf_recipes.data.feedback.read import normalize
from rlhf_recipes.data.loading import load_rows
from tests.recipes.test_ppo import load_main, read, write_rows
from tests.recipes.tiny_runs import check_page
from tests.rewards.test_remote import Double, lengths
from tests.tiny import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

REWARDS = """
def length(completions, **kwargs):
    return [float(len(text)) for text in completions]

def vowels(completions, **kwargs):
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]
"""
CANDIDATES = [
    {"prompt": "first", "completions": ["aa", "bbbb", "c"], "gold": [2, 1, 3]},
    {"prompt": "second", "completions": ["dd", "e", "fff"], "gold": [3, 2, 1]},
    {"prompt": "third", "completions": ["alone"], "gold": [1]},
]


@pytest.fixture(scope="module")
def main():
    return load_main("best_of_n")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    llama, bert = tiny_tokenizer("llama"), tiny_tokenizer("bert")
    save_tiny(folder / "policy", tiny_causal_lm(llama), llama)
    save_tiny(folder / "reward", tiny_classifier(bert), bert)
    (folder / "my_rewards.py").write_text(REWARDS)
    write_rows(folder / "prompts/test.jsonl", [{"prompt": f"The film {i} is"} for i in range(5)])
    write_rows(folder / "given.jsonl", CANDIDATES)
    return folder


def command(out, **options):
    words = ["--output_dir", str(out)]
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def given(place, out, **more):
    options = {
        "dataset_name": place / "given.jsonl",
        "dataset_test_split": "train",
        "completions_column": "completions",
        "reward_funcs": [f"{place}/my_rewards.py:length"],
        **more,
    }
    return command(out, **options)


def rows_of(file):
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def test_a_policy_writes_a_reward_chooses_and_a_judge_watches(main, place, tmp_path, capsys):
    options = {
        "dataset_name": place / "prompts",
        "model_name_or_path": place / "policy",
        "reward_funcs": [place / "reward"],
        "judge_funcs": [f"{place}/my_rewards.py:length"],
        "num_candidates": 4,
        "max_completion_length": 6,
    }
    main([*command(tmp_path, **options), "--write_pairs"])
    best, candidates, curve = (
        rows_of(tmp_path / "best.jsonl"),
        rows_of(tmp_path / "candidates.jsonl"),
        read(tmp_path, "curve.json"),
    )
    assert [row["prompt"] for row in best] == [f"The film {i} is" for i in range(5)]
    for row, of_row in zip(best, candidates, strict=True):
        assert row["score"] == max(of_row["scores"])
        assert row["completion"] == of_row["completions"][row["chosen"]]
        assert row["judges"]["length"] == len(row["completion"])
        assert all(logprob < 0 for logprob in of_row["logprobs"])
    assert [row["n"] for row in curve] == [1, 2, 4]
    assert curve[-1]["score"] == pytest.approx(sum(row["score"] for row in best) / 5)
    assert curve[-1]["length"] == pytest.approx(sum(len(row["completion"]) for row in best) / 5)
    metrics = read(tmp_path, "metrics.json")
    assert (metrics["prompts"], metrics["n"], metrics["score"]) == (5, 4, curve[-1]["score"])
    assert metrics["pairs"] + metrics["prompts_without_pair"] == 5
    assert normalize(load_rows(str(tmp_path / "pairs.jsonl"), "train"))[1].format.kind == "pairs"
    assert (tmp_path / "best_of_n.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "config.yaml").is_file()
    assert "KL <=" in capsys.readouterr().out
    check_page(tmp_path, "score", says=("The best of", "The curve", "All 5 completions"))


def test_given_candidates_are_ranked_and_measured_by_gold(main, place, tmp_path):
    main(given(place, tmp_path, gold_column="gold"))
    best, curve = rows_of(tmp_path / "best.jsonl"), read(tmp_path, "curve.json")
    assert [row["completion"] for row in best] == ["bbbb", "fff", "alone"]
    assert [row["order"] for row in best] == [[1, 0, 2], [2, 0, 1], [0]]
    # of the two prompts with a choice: gold 1 and 1 at n = 3, against 2 and 2 on average
    assert (curve[-1]["n"], curve[-1]["gold"], curve[-1]["gold_gain"]) == (3, 1.0, -1.0)
    assert curve[-1]["gold_ceiling"] == 3.0
    assert read(tmp_path, "metrics.json")["single_candidates"] == 1


def test_a_served_reward_chooses_as_one_at_hand(main, place, tmp_path):
    main(given(place, tmp_path / "here"))
    with Double(lengths) as double:
        served = json.dumps({"func": "RemoteReward", "args": {"url": double.url}})
        main(given(place, tmp_path / "there", reward_funcs=[served]))
    assert rows_of(tmp_path / "there/best.jsonl") == rows_of(tmp_path / "here/best.jsonl")


def test_what_was_scored_is_ranked_again_by_another_reward(main, place, tmp_path):
    main(given(place, tmp_path / "one"))
    again = {"dataset_name": tmp_path / "one/candidates.jsonl", "reward_funcs": [f"{place}/my_rewards.py:vowels"]}
    main(given(place, tmp_path / "two", **again))
    assert [row["completion"] for row in rows_of(tmp_path / "two/best.jsonl")] == ["aa", "e", "alone"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gold_column": "gold"}, "name these with completions_column"),
        ({}, "model_name_or_path to sample candidates"),
        ({"temperature": 0}, "temperature is 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(main, place, tmp_path, capsys, options, said):
    arguments = command(tmp_path, dataset_name=place / "prompts", reward_funcs=["Vader"], **options)
    with pytest.raises((SystemExit, ValueError)) as refused:
        main(arguments)
    assert said in str(refused.value) + capsys.readouterr().err
