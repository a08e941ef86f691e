"""Each text goes through the reward once, and comes back to every row it stands in."""

import pytest
from datasets import Dataset

from rlhf_recipes.reward_modeling.scored import score_rows, score_steps
from rlhf_recipes.rewards.learned import LearnedReward
from rlhf_recipes.rewards.process import StepModel
from tests.reward_modeling.tiny_models import tiny_step_model
from tests.tiny import tiny_classifier, tiny_tokenizer


class Lengths:
    """A score that a reader can see, and what was asked for it."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, completions, **kwargs):
        self.asked += list(zip(prompts, completions, strict=True))
        return [None if text == "?" else float(len(text)) for text in completions]


def test_a_text_in_many_rows_is_scored_once():
    rows = Dataset.from_dict({"prompt": ["a", "a", "b"], "chosen": ["xx", "xx", "xx"], "rejected": ["y", "zzz", "y"]})
    reward = Lengths()
    found = score_rows(reward, rows)
    assert found.kind == "pairs"
    assert found.scores == [[2, 1], [2, 3], [2, 1]]
    assert sorted(reward.asked) == [("a", "xx"), ("a", "y"), ("a", "zzz"), ("b", "xx"), ("b", "y")]
    assert found.column(1) == [1, 3, 1]
    assert found.texts(1) == ["ay", "azzz", "by"]
    assert found.shared_prompts() == ["a", "a", "b"]


def test_lists_end_to_end():
    rows = Dataset.from_dict({"completions": [["a", "bb"], ["ccc", "a", "dd"]], "ranks": [[1, 2], [3, 1, 2]]})
    found = score_rows(Lengths(), rows)
    scores, quality, of_row, texts = found.flat([[-1, -2], [-3, -1, -2]])
    assert scores == [1, 2, 3, 1, 2]
    assert quality == [-1, -2, -3, -1, -2]
    assert of_row == [0, 0, 1, 1, 1]
    assert texts == ["a", "bb", "ccc", "a", "dd"]
    assert found.shared_prompts() is None


def test_rows_without_a_score_are_left_out_and_counted():
    rows = Dataset.from_dict({"completion": ["aa", "?", "b"], "score": [1.0, 2.0, 3.0]})
    found = score_rows(Lengths(), rows)
    assert found.scores == [[2], [1]]
    assert found.dataset["score"][:] == [1.0, 3.0]
    assert found.unscored == 1
    with pytest.raises(ValueError, match="says nothing"):
        score_rows(Lengths(), rows.select([1]))


def test_messages_are_scored_as_messages_and_read_as_text():
    answer = [{"role": "assistant", "content": "Yes."}]
    rows = Dataset.from_dict({"completion": [answer, answer], "score": [1.0, 2.0]})
    reward = Lengths()
    found = score_rows(reward, rows)
    assert reward.asked == [([], answer)]
    assert found.texts() == ["Yes.", "Yes."]


def test_all_outputs_come_out_of_the_same_pass():
    tokenizer = tiny_tokenizer("bert")
    model = tiny_classifier(tokenizer, num_labels=2, id2label={0: "kind", 1: "true"}, label2id={"kind": 0, "true": 1})
    both = LearnedReward(model, tokenizer, labels={"kind": 1.0, "true": -0.5}, batch_size=2)
    texts = ["A quiet film.", "Dull.", "It was bad, but the music was good."]
    rows = Dataset.from_dict({"completion": texts, "scores": [{"kind": 1.0, "true": 0.0}] * 3})
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    found = score_rows(both, rows)
    assert len(passes) == 2  # three texts, two at a time
    for name in ("kind", "true"):
        alone = LearnedReward(model, tokenizer, label=name)(["", "", ""], texts)
        assert found.outputs[name] == pytest.approx(alone, abs=1e-5)
    wanted = [k - 0.5 * t for k, t in zip(found.outputs["kind"], found.outputs["true"], strict=True)]
    assert found.column(0) == pytest.approx(wanted, abs=1e-5)


def test_steps_get_the_scores_that_the_step_model_gives_them():
    tokenizer, model = tiny_step_model()
    steps = [["The film is", " a quiet story."], ["Nobody"]]
    rows = Dataset.from_dict({"prompt": ["What? ", "Who? "], "completions": steps, "labels": [[1.0, 0.0], [1.0]]})
    found = score_steps(StepModel(model, processing_class=tokenizer), rows)
    # By hand: each part on its own, a line break behind each step, and the sigmoid of what is said there.
    ids, ends = list(tokenizer("What? ", add_special_tokens=False).input_ids), []
    if tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    for step in steps[0]:
        ids += tokenizer(step, add_special_tokens=False).input_ids
        ids += tokenizer("\n", add_special_tokens=False).input_ids
        ends.append(len(ids) - 1)
    import torch

    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0, ends, 0].sigmoid().tolist()
    assert found.scores[0] == pytest.approx(wanted, abs=1e-5)
    assert len(found.scores[1]) == 1
    with pytest.raises(ValueError, match="score_steps"):
        score_rows(Lengths(), rows)
