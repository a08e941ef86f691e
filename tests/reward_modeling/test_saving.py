"""What is saved gives the scores of the model in memory, whatever the loss was."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from rlhf_recipes.modeling.loading import ModelArguments, load_reward_model
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.examples import example_rows, settings_for
from rlhf_recipes.reward_modeling.losses import make_objective
from rlhf_recipes.reward_modeling.saving import save_reward_model, save_settings
from rlhf_recipes.reward_modeling.trainer import FeedbackTrainer
from rlhf_recipes.rewards.learned import LearnedReward
from rlhf_recipes.rewards.loading import load_reward
from rlhf_recipes.rewards.process import StepModel, StepReward
from tests.reward_modeling.pair_trainer import trainer_of
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer


def test_an_adapter_is_saved_on_its_own_too_and_gives_the_same_scores(tmp_path):
    tokenizer = tiny_tokenizer("llama")
    base = save_tiny(tmp_path / "base", tiny_classifier(tokenizer, "llama"), tokenizer)
    model_args = ModelArguments(model_name_or_path=str(base), use_peft=True, lora_target_modules=["q_proj", "v_proj"])
    model = load_reward_model(model_args, tokenizer)
    trainer = trainer_of(tmp_path / "out", model, tokenizer, learning_rate=1e-2, bf16=False)
    trainer.train()
    ids = torch.tensor([[11, 12, 13]])
    with torch.no_grad():
        trained = model.eval()(ids).logits.item()
        save_reward_model(trainer, model_args)
        merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
        assert merged.eval()(ids).logits.item() == pytest.approx(trained, abs=1e-5)
        adapter = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == str(base)
        assert not (tmp_path / "out/adapter_config.json").exists()  # else from_pretrained would load both
        again = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        again.load_adapter(str(tmp_path / "out/adapter"))
        assert again.eval()(ids).logits.item() == pytest.approx(trained, abs=1e-5)


TEXTS = ["a good film", "a bad film", "good", "bad", "the plot", "a dull plot", "fine", "great cast"]
RATINGS = {"completion": TEXTS, "score": [3.0, 1.0, 3.0, 1.0, 2.0, 1.0, 2.0, 3.0]}
SCORES = [{"kind": 1.0 + row % 3, "short": None if row == 2 else 3.0 - row % 2} for row in range(8)]


def trained(folder, loss, rows, loss_args=None, lora=False, targets=("q_proj", "v_proj")):
    """Train a little, save, and return the model as it was in memory, the settings and the objective."""
    tokenizer = tiny_tokenizer("llama")
    base = save_tiny(folder / "base", tiny_classifier(tokenizer, "llama"), tokenizer)
    adapters = {"use_peft": True, "lora_target_modules": list(targets)} if lora else {}
    model_args = ModelArguments(model_name_or_path=str(base), dtype="float32", **adapters)
    objective = make_objective(loss, loss_args)
    objective.fit(rows)
    of_steps = objective.step_token is not None
    model = load_reward_model(model_args, tokenizer, labels=objective.label_names, token_level=of_steps)
    settings = settings_for(tokenizer, model, None)
    args = RewardConfig(
        output_dir=str(folder / "out"), use_cpu=True, bf16=False, learning_rate=1e-2, disable_tqdm=True,
        save_strategy="no", per_device_train_batch_size=4,
    )  # fmt: skip
    examples = example_rows(rows, objective, tokenizer, settings)
    trainer = FeedbackTrainer(model, args, objective, tokenizer, examples)
    trainer.train()
    batch = trainer.data_collator(list(examples))
    with torch.no_grad():
        logits = trainer.model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    save_reward_model(trainer, model_args)
    save_settings(folder / "out", settings, objective)
    return logits, objective, batch


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_an_ordinal_model_gives_the_expected_level(lora, tmp_path):
    logits, objective, _ = trained(tmp_path, "ordinal", Dataset.from_dict(RATINGS), lora=lora)
    thresholds = objective.link.thresholds().detach()
    # P(y > k) = 1 - sigma(theta_k - s), and the expected level is the lowest plus their sum: levels are 1 apart.
    expected = 1 + torch.sigmoid(logits - thresholds).sum(dim=1)
    reward = LearnedReward(tmp_path / "out")
    assert reward([""] * 8, TEXTS) == pytest.approx(expected.tolist(), abs=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert not any("objective" in name for name, _ in plain.named_parameters())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_classifier_gives_the_expected_level_of_its_probabilities(lora, tmp_path):
    logits, _, _ = trained(tmp_path, "classification", Dataset.from_dict(RATINGS), lora=lora)
    expected = logits.softmax(dim=1) @ torch.tensor([1.0, 2.0, 3.0])
    assert LearnedReward(tmp_path / "out")([""] * 8, TEXTS) == pytest.approx(expected.tolist(), abs=1e-5)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["id2label"] == {"0": "1", "1": "2", "2": "3"}


def test_several_objectives_are_weighed_into_one_score(tmp_path):
    rows = Dataset.from_list([{"completion": text, "scores": of} for text, of in zip(TEXTS, SCORES, strict=True)])
    logits, _, _ = trained(tmp_path, "multi_objective", rows, {"weights": {"kind": 3.0, "short": -1.0}})
    expected = 0.75 * logits[:, 0] - 0.25 * logits[:, 1]
    assert LearnedReward(tmp_path / "out")([""] * 8, TEXTS) == pytest.approx(expected.tolist(), abs=1e-5)
    one = LearnedReward(tmp_path / "out", label="short")([""] * 8, TEXTS)
    assert one == pytest.approx(logits[:, 1].tolist(), abs=1e-5)


def test_a_gated_model_weighs_its_objectives_by_itself(tmp_path):
    scores = [{"kind": 1.0 + row % 3, "short": 3.0 - row % 2, "overall": 1.0 + row % 2} for row in range(8)]
    rows = Dataset.from_list([{"completion": text, "scores": of} for text, of in zip(TEXTS, scores, strict=True)])
    logits, _, _ = trained(tmp_path, "multi_objective", rows, {"gate": "overall"})
    expected = (logits[:, 2:].softmax(dim=1) * logits[:, :2]).sum(dim=1)
    assert LearnedReward(tmp_path / "out")([""] * 8, TEXTS) == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_rating_comes_back_in_its_own_unit(tmp_path):
    logits, _, _ = trained(tmp_path, "mse", Dataset.from_dict(RATINGS))
    # Ratings 3 1 3 1 2 1 2 3: mean 2, variance 6/8.
    expected = 2 + 0.75**0.5 * logits[:, 0]
    assert LearnedReward(tmp_path / "out")([""] * 8, TEXTS) == pytest.approx(expected.tolist(), abs=1e-5)
    assert LearnedReward(tmp_path / "out", calibrate=False)([""] * 8, TEXTS) == pytest.approx(
        logits[:, 0].tolist(), abs=1e-5
    )


STEPS = {
    "prompt": ["Add 2 and 2.", "What is it?"] * 4,
    "completions": [["two", "and two", "is four"], ["it is five"]] * 4,
    "labels": [[1.0, None, 1.0], [0.0]] * 4,
}


@pytest.mark.parametrize(("kind", "lora"), [("mse", False), ("bce", True)])
def test_a_process_model_remembers_whether_it_says_probabilities(kind, lora, tmp_path):
    settings = {"step_token": "<eos>", "kind": kind}
    logits, _, batch = trained(
        tmp_path, "process", Dataset.from_dict(STEPS), settings, lora=lora, targets=["all-linear"]
    )
    said = logits if kind == "mse" else logits.sigmoid()
    end = int(batch["targets"]["ends"][1, 0])
    (found,) = StepModel(str(tmp_path / "out")).scores(["What is it?"], ["it is five"], [[(0, 10)]], "steps")
    assert found == pytest.approx([said[1, end, 0].item()], abs=1e-5)


def test_one_objective_alone_has_its_name(tmp_path):
    rows = Dataset.from_list(
        [{"completion": text, "scores": {"kind": 1.0 + row % 3}} for row, text in enumerate(TEXTS)]
    )
    logits, _, _ = trained(tmp_path, "multi_objective", rows)
    assert LearnedReward(tmp_path / "out")([""] * 8, TEXTS) == pytest.approx(logits[:, 0].tolist(), abs=1e-5)


def test_a_full_model_leaves_no_adapter_of_an_earlier_run(tmp_path):
    (tmp_path / "out/adapter").mkdir(parents=True)
    (tmp_path / "out/adapter/adapter_config.json").write_text("{}")
    trained(tmp_path, "mse", Dataset.from_dict(RATINGS))
    assert not (tmp_path / "out/adapter").exists()


def test_a_process_model_judges_the_steps_as_it_did_in_training(tmp_path):
    rows = Dataset.from_dict(STEPS)
    logits, _, batch = trained(tmp_path, "process", rows, {"step_token": "<eos>"})
    ends = batch["targets"]["ends"]
    steps = StepModel(str(tmp_path / "out"))
    assert steps.step_token == "<eos>"
    texts = ["two\n\nand two\n\nis four", "it is five"]
    spans = [[(0, 3), (5, 12), (14, 21)], [(0, 10)]]
    found = steps.scores(rows["prompt"][:2], texts, spans, "steps")
    for row, count in ((0, 3), (1, 1)):
        places = ends[row, :count].long()
        assert found[row] == pytest.approx(logits[row, places, 0].sigmoid().tolist(), abs=1e-5)
    AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    assert type(load_reward(str(tmp_path / "out"))) is StepReward
