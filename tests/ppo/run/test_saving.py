"""What the model card of a run shows of it: completions, and how a chat model is asked."""

import pytest
from datasets import Dataset

from rlhf_recipes.hub import license_of
from tests.ppo.helpers import DATA, OPENINGS, TOKENIZER, trainer
from tests.tiny import tiny_tokenizer


def card_of(folder, run):
    run.train()
    run.create_model_card(dataset_name="films")
    return (folder / "README.md").read_text()


def shown(card):
    """The rows of the table of completions."""
    section = card.split("## What it writes")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


def test_the_last_completions_of_training_are_shown(tmp_path):
    run = trainer(tmp_path)
    rows = shown(card_of(tmp_path, run))
    assert len(rows) == 5
    scores = [float(row.split("|")[-2].strip().strip("*")) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert sum(any(opening in row for opening in OPENINGS) for row in rows) == 5


def test_held_out_completions_come_first(tmp_path):
    held_out = Dataset.from_dict({"prompt": ["Held out A", "Held out B"], "number": [0, 1]})
    run = trainer(tmp_path, eval_dataset=held_out, eval_strategy="steps", eval_steps=1)
    rows = shown(card_of(tmp_path, run))
    assert len(rows) == 2
    assert all("Held out" in row for row in rows)


@pytest.mark.slow
def test_a_chat_model_is_asked_by_its_template(tmp_path):
    tokenizer = tiny_tokenizer(chat_template=True)
    prompts = [[{"role": "user", "content": opening}] for opening in OPENINGS * 2]
    data = Dataset.from_dict({"prompt": prompts, "number": DATA["number"]})
    card = card_of(tmp_path, trainer(tmp_path, data=data, tokenizer=tokenizer))
    assert "apply_chat_template" in card
    assert "user: " in shown(card)[0]
    assert "apply_chat_template" not in card_of(tmp_path / "text", trainer(tmp_path / "text", tokenizer=TOKENIZER))


def test_the_license_is_that_of_the_base_where_its_card_is_there(tmp_path):
    assert license_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A base\n")
    assert license_of(str(tmp_path)) == "apache-2.0"
    (tmp_path / "README.md").write_text("---\nlicense: [a, {\n---\n")
    assert license_of(str(tmp_path)) is None
    assert license_of("an unnamed model") is None
    assert license_of("nobody/nothing-of-this-name") is None


def test_the_best_of_two_sets_without_a_figure_of_one_is_refused_at_the_start(tmp_path):
    sets = {"mine": DATA.select(range(2)), "other": DATA.select(range(2))}
    options = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 4, "save_steps": 4,
               "load_best_model_at_end": True}  # fmt: skip
    with pytest.raises(ValueError, match="2 evaluation sets with figures of their own: 'mine', 'other'"):
        trainer(tmp_path, eval_dataset=sets, **options)
    best = trainer(tmp_path, eval_dataset=sets, metric_for_best_model="other_objective/scores", **options)
    best.train()
    assert best.state.best_metric is not None
