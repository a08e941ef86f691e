"""The benchmark of compute-aware PPO: its figures by hand, and the whole of it on a tiny policy."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from rlhf_recipes.rewards import Flops
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compute_aware():
    """Imported as `python benchmarks/compute_aware.py` does: its folder comes first on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROJECT / "benchmarks")
        yield importlib.import_module("compute_aware")
    for name in ("compute_aware", "tiny_tasks"):
        sys.modules.pop(name, None)


def answers(task, gflops):
    return {"task": np.array(task), "gflops": np.array(gflops), "tokens": 10 * np.array(gflops)}


# ---- figures


def test_the_price_is_taken_out_of_the_score(compute_aware):
    rows = [{"score": 0.3, "vader": 0.8, "cost": 5.0, compute_aware.TOKENS: 9.0}]  # 0.8 - 0.1 * 5
    found = compute_aware.answers(rows, 0.1, "cost")
    assert {name: values.tolist() for name, values in found.items()} == {
        "task": [pytest.approx(0.8)],
        "gflops": [5.0],
        "tokens": [9.0],
    }


def test_means_and_paired_differences_have_students_intervals(compute_aware):
    """Values without skewness, for which the interval is that of Student's t."""
    before = answers([0.0, 0.0, 0.0], [5.0, 5.0, 5.0])
    free = answers([0.1, 0.2, 0.3], [6.0, 7.0, 8.0])
    priced = answers([0.1, 0.1, 0.1], [2.0, 3.0, 4.0])
    report = compute_aware.summary({0.0: [(before, free)], 0.5: [(before, priced)]})
    first, second = report["penalties"]
    assert report["prompts"] == 3
    assert report["start"]["gflops"] == {"mean": 5.0, "ci95": [5.0, 5.0]}
    low, high = stats.ttest_1samp([1.0, 2.0, 3.0], 0.0).confidence_interval(0.95)
    assert first["over_start"]["gflops"] == {"mean": 2.0, "ci95": pytest.approx([low, high], abs=1e-4)}
    assert second["over_start"]["gflops"]["mean"] == -2.0
    assert second["over_first"]["gflops"] == {"mean": -4.0, "ci95": [-4.0, -4.0]}, "paired: all differ by as much"
    low, high = stats.ttest_1samp([0.0, -0.1, -0.2], 0.0).confidence_interval(0.95)
    assert second["over_first"]["task"]["ci95"] == pytest.approx([low, high], abs=1e-4)
    assert "over_first" not in first


def test_answers_of_several_seeds_to_one_prompt_are_one_unit(compute_aware):
    run = (answers([0.0, 0.0], [1.0, 1.0]), answers([0.2, 0.4], [1.0, 3.0]))
    once = compute_aware.summary({0.0: [run]})["penalties"][0]["after"]
    twice = compute_aware.summary({0.0: [run, run]})["penalties"][0]["after"]
    assert twice == once, "a copy adds no certainty"


def test_the_weight_of_flops_is_set_and_no_other(compute_aware):
    specs = ["Vader", {"func": "Flops", "name": "cost", "weight": -3.0}, {"func": "PlainProse", "weight": 0.5}]
    priced, name = compute_aware.priced(specs, 0.2)
    assert priced == ["Vader", {"func": "Flops", "name": "cost", "weight": -0.2}, specs[2]]
    assert name == "cost"
    assert specs[1]["weight"] == -3.0
    with pytest.raises(SystemExit, match="has 0 rewards with `func: Flops`"):
        compute_aware.priced(["Vader"], 0.2)


@pytest.mark.parametrize("given", [["-1"], ["0", "0.1", "0.1"]])
def test_penalties_that_are_negative_or_the_same_are_refused(compute_aware, given, capsys):
    with pytest.raises(SystemExit):
        compute_aware.parse(["--penalties", *given])
    assert "give different numbers of 0 or more" in capsys.readouterr().err


# ---- the whole of it


@pytest.fixture
def config(tmp_path):
    """A task that pays for every letter e, on a policy with random weights."""
    tokenizer = tiny_tokenizer()
    policy = save_tiny(tmp_path / "policy", tiny_causal_lm(tokenizer), tokenizer)
    (tmp_path / "data").mkdir()
    for split, count in {"train": 16, "test": 6}.items():
        rows = [{"prompt": f"{split} number {number}"} for number in range(count)]
        (tmp_path / f"data/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_rewards.py").write_text(
        "def letters(completions, **kwargs):\n    return [float(text.count('e')) for text in completions]\n"
    )
    rewards = [
        {"func": f"{tmp_path}/my_rewards.py:letters", "name": "letters", "weight": 0.5},
        {"func": "Flops", "name": "cost", "args": {"model": str(policy), "unit": 1e6}, "weight": -1.0},
    ]
    options = {"dataset_name": str(tmp_path / "data"), "reward_funcs": rewards, "model_name_or_path": str(policy)}
    options |= {"total_episodes": 32, "per_device_train_batch_size": 16, "max_completion_length": 6, "use_cpu": True}
    options |= {"learning_rate": 0.01, "num_completions_to_print": 0, "save_strategy": "no", "disable_tqdm": True}
    options |= {"output_dir": str(tmp_path / "unused")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options))
    return tmp_path / "config.yaml"


def test_it_trains_at_each_penalty_and_prints_one_line(compute_aware, config, capsys):
    folder = config.parent
    words = ["--config", str(config), "--penalties", "0", "2", "--seeds", "1", "--temperature", "1.0"]
    compute_aware.main([*words, "--output", str(folder / "out.json"), "--plot", str(folder / "front.png")])
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    report, kept = json.loads(line), json.loads((folder / "out.json").read_text())
    kept_answers = kept.pop("answers")
    assert kept == report
    assert [found["penalty"] for found in report["penalties"]] == [0.0, 2.0]
    assert report["prompts"] == 6
    free, priced = (kept_answers[name][0] for name in ("0", "2"))
    assert [row["completion"] for row in free] != [row["completion"] for row in priced]
    # What is reported of a run, from the texts that were kept.
    texts = [row["completion"] for row in priced]
    assert report["penalties"][1]["after"]["task"]["mean"] == pytest.approx(
        np.mean([0.5 * text.count("e") for text in texts]), abs=1e-3
    )
    flops = Flops(str(folder / "policy"), unit=1e6)
    tokenizer = tiny_tokenizer()
    lengths = [int(row[compute_aware.TOKENS]) for row in priced]
    costs = flops(
        completions=texts,
        prompt_ids=[tokenizer(row["prompt"])["input_ids"] for row in priced],
        completion_ids=[[0] * length for length in lengths],
    )
    assert report["penalties"][1]["after"]["gflops"]["mean"] == pytest.approx(np.mean(costs), abs=1e-3)
    assert report["penalties"][1]["after"]["tokens"]["mean"] == pytest.approx(np.mean(lengths), abs=1e-3)
    assert "| 2, less 0 |" in err
    assert 3_000 < (folder / "front.png").stat().st_size < 40_000
    assert not (folder / "unused").exists()


def test_the_answers_before_training_are_the_same_at_every_penalty(compute_aware, config):
    free, priced = (compute_aware.train(config, penalty, 1, ["--total_episodes", "16"]) for penalty in (0.0, 2.0))
    for name in compute_aware.FIGURES:
        assert priced["before"][name] == pytest.approx(free["before"][name], abs=1e-6)
    given = compute_aware.train(config, 2.0, 1, ["--total_episodes", "16"], free["before"])
    assert [row["completion"] for row in given["rows"]] == [row["completion"] for row in priced["rows"]]
