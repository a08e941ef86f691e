"""The page of one run, whatever the recipe: what the files say, and no more."""

import json
import re
from pathlib import Path

import pytest

from rlhf_recipes.report import ReportError, load_run, write_report
from tests.report.quickstart.test_page import Page
from tests.report.runs import CONFIG, EVIL, evaluate_run, ppo_run, write_run

pytestmark = pytest.mark.usefixtures("undrawn")


def page_of(folder: Path) -> tuple[Page, str]:
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    return page, page.spaced()


def test_a_run_of_ppo(tmp_path: Path) -> None:
    page, words = page_of(ppo_run(tmp_path / "ppo"))
    assert "PPO: the score went from 0.50 to 1.50 at a KL of 3.00 nats." in words
    assert "Model org/base; data org/prompts; 12 steps, 24 episodes." in words
    assert "Score: weighted score score 0.5 1.5 0.125 1.125" in words  # first, last, and both held out
    assert "KL to the reference nats per completion 0 3 – –" in words
    assert "judge 1 0 1 0.75 90.0%" in words  # weight, mean at first and at last, spread, share
    assert "brevity 2 0.25 0.25 0.25 10.0%" in words
    labels = [attributes["aria-label"] or "" for tag, attributes in page.tags if tag == "svg"]
    assert len(labels) == 2  # score and KL; the loss of PPO is drawn by its parts
    assert "weighted score from 0.5 to 1.5; weighted score, held out from 0.125 to 1.12" in labels[0]
    assert "judge from 0 to 1; brevity from 0.25 to 0.25" in labels[0]
    assert "accelerate launch --num_processes 2 recipes/ppo.py --config" in words
    assert "torch 2.13.0" in words
    assert "kl_coef: 0.05" in words


def test_nothing_on_the_page_is_markup_or_secret(tmp_path: Path) -> None:
    page, words = page_of(ppo_run(tmp_path / "ppo"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert EVIL in page.text
    assert "hf_abcdefgh1234" not in page.text
    assert str(tmp_path) not in page.text
    assert "score 0.75 judge 0.25 brevity 0.25 kl 0.50 3 tokens, ended" in words
    assert "score 0.00 judge −0.50 brevity 0.25 kl 0.50 3 tokens, cut" in words
    best = words[words.index("The best") : words.index("The worst")]
    assert re.findall(r"The film \d", best) == ["The film 3", "The film 2"]


def test_an_evaluation_has_spread_and_share_from_its_completions(tmp_path: Path) -> None:
    _, words = page_of(evaluate_run(tmp_path / "after", [1.0, 2.0, 3.0, 2.0]))
    assert "A score of 4.00 over 4 prompts." in words
    # By hand: the standard deviation of 1, 2, 3, 2, and all of what tells completions apart, for brevity is constant.
    assert "judge 1 2 0.7071 100.0%" in words
    assert "brevity 2 1 0 0.0%" in words
    assert "Training" not in words


def test_a_trainer_of_trl_counts_steps(tmp_path: Path) -> None:
    log = [
        {"step": step, "reward": step / 2, "rewards/judge/mean": step / 4, "rewards/judge/std": 0.5, "kl": 0.01 * step}
        for step in (1, 2, 3)
    ]
    page, words = page_of(write_run(tmp_path / "grpo", "grpo", log_history=log, metrics=log[-1], config=CONFIG))
    assert "GRPO: the reward went from 0.50 to 1.50" in words
    assert "judge 1 0.25 0.75 0.5 –" in words
    labels = [attributes["aria-label"] or "" for tag, attributes in page.tags if tag == "svg"]
    assert labels[0].startswith("Reward over optimizer steps, reward: weighted sum from 0.5 to 1.5; judge from 0.25")


def test_a_run_that_has_not_ended_has_the_log_of_its_last_checkpoint(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sft", "sft", config="{}")
    for step in (2, 10):
        (run / f"checkpoint-{step}").mkdir()
        log = [{"step": place, "loss": 3.0 - place / 10, "eval_loss": 2.5} for place in range(1, step + 1)]
        (run / f"checkpoint-{step}/trainer_state.json").write_text(json.dumps({"log_history": log}))
    _, words = page_of(run)
    assert "Fine-tuning: the loss went from 2.90 to 2.00." in words
    assert "it is under way, or was interrupted" in words
    assert "Loss loss 2.9 2 2.5 2.5" in words


def test_rows_that_were_labelled_and_a_curve(tmp_path: Path) -> None:
    metrics = {
        "rows": 3,
        "labelled": 2,
        "abstained": 1,
        "threshold": 0.8,
        "accuracy": 0.9,
        "accuracy_ci95": [0.8, 1.0],
    }
    rows = [{"completion": f"text {n}", "given_score": -n, "model_score": n, "abstained": n == 1} for n in range(3)]
    curve = [{"threshold": 0.9, "coverage": 0.5}, {"threshold": 0.8, "coverage": 1.0}]
    run = write_run(tmp_path / "label", "label", metrics=metrics, labeled_rows=rows, coverage=curve)
    _, words = page_of(run)
    assert "2 of 3 rows have a label." in words
    assert "90.0% (80.0% to 100.0%)" in words
    assert "threshold coverage 0.9 0.5 0.8 1" in words
    assert words.index("text 2") < words.index("text 0")  # by the model's score
    assert "Prompt" not in words


def test_completions_that_trl_has_logged(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    run = write_run(tmp_path / "grpo", "grpo", metrics={"reward": 1.0}, config=CONFIG)
    (run / "completions").mkdir()
    rows = {
        "step": [4, 4],
        "prompt": ["a", "b"],
        "completion": ["x", "y"],
        "judge": [1.0, -1.0],
        "brevity": [0.0, 0.5],
    }
    parquet.write_table(pyarrow.table(rows), run / "completions/completions_00004.parquet")
    assert load_run(run).completions[1].scores == {"judge": -1.0, "brevity": 0.5}
    _, words = page_of(run)
    best = words[words.index("The best") : words.index("The worst")]
    assert " x judge 1.00 brevity 0.00" in best  # 1 against -1 + 2 * 0.5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log_history.json", "{}", "log_history.json must hold a list of objects, found an object"),
        ("metrics.json", "[]", "metrics.json must hold one JSON object, found a list"),
        ("completions.jsonl", '{"prompt": "a"}', "line 1: 'completion' must be text or a list of messages"),
        ("config.yaml", "a: [", "config.yaml is not valid YAML"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    run = ppo_run(tmp_path / "ppo")
    (run / name).write_text(content)
    with pytest.raises(ReportError, match=message) as refused:
        write_report(run)
    assert str(run / name) in str(refused.value)


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ReportError, match="holds no run: none of metrics.json, log_history.json"):
        write_report(tmp_path)
    with pytest.raises(ReportError, match="No folder at"):
        write_report(tmp_path / "nowhere")
