"""What TRL makes of the name of a reward model: its real trainers are run, and their rewards compared."""

import json
import math

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rlhf_recipes.modeling.calibration import LogisticCalibration
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.reward_modeling.bias.string_path import StringPath, string_path_difference
from rlhf_recipes.rewards.learned import LearnedReward
from tests.tiny import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

PROMPTS = ["The film is", "A dull script", "What a", "It was bad, but the"]
COMPLETIONS = [" a quiet story.", " and a tired cast", " wonderful little picture!", " music was good"]


class Recorder:
    """A reward of nothing that keeps what it is asked."""

    __name__ = "recorder"

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, **kwargs):
        self.calls.append((prompts, completions))
        return [0.0] * len(prompts)


def saved(folder, kind, chat_template=False, settings=None, **model):
    tokenizer = tiny_tokenizer(kind, chat_template=chat_template)
    save_tiny(folder, tiny_classifier(tokenizer, kind, **model), tokenizer)
    (settings or RewardModelSettings(append_eos=kind == "llama")).save(folder)
    return folder


def logged_rewards(trainer_class, config_class, folder, model, prompts, bf16):
    """Two steps of training: of each the prompts, the completions and the mean reward of the model, as logged."""
    tokenizer, recorder = tiny_tokenizer("llama", chat_template=True), Recorder()
    trainer = trainer_class(
        model=str(save_tiny(folder.parent / "policy", tiny_causal_lm(tokenizer), tokenizer)),
        reward_funcs=[str(model), recorder],
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        args=config_class(
            output_dir=str(folder), per_device_train_batch_size=4, num_generations=2, max_completion_length=6,
            max_steps=2, logging_steps=1, report_to="none", use_cpu=True, bf16=bf16, gradient_checkpointing=False,
            save_strategy="no", disable_tqdm=True,
        ),
    )  # fmt: skip
    trainer.train()
    logs = [log for log in trainer.state.log_history if "reward" in log]
    figures = [(log[f"rewards/{model.name}/mean"], log[f"rewards/{model.name}/std"]) for log in logs]
    assert len(recorder.calls) == len(figures) == 2
    return recorder.calls, figures


@pytest.mark.parametrize("trainer", [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)], ids=["grpo", "rloo"])
@pytest.mark.parametrize(("kind", "bf16"), [("bert", False), ("llama", True)])
def test_the_rewards_are_those_that_trl_logs(trainer, kind, bf16, tmp_path):
    model = saved(tmp_path / "judge", kind)
    calls, figures = logged_rewards(*trainer, tmp_path / "out", model, PROMPTS, bf16)
    path, learned = StringPath(model, bf16=bf16), LearnedReward(model)
    for (prompts, completions), (mean, std) in zip(calls, figures, strict=True):
        # In bfloat16 a sum is rounded by what it is batched with, to about 8 bits of the largest part.
        tolerance = 2e-2 if bf16 else 1e-5
        scores = torch.tensor(path(prompts, completions))
        assert mean == pytest.approx(scores.mean().item(), abs=tolerance)
        assert std == pytest.approx(scores.std().item(), abs=tolerance)
        direct = torch.tensor(learned(prompts, completions))
        assert abs(mean - direct.mean().item()) > 5 * tolerance


def test_the_rewards_of_conversations_are_those_that_trl_logs(tmp_path):
    model = saved(tmp_path / "judge", "llama", chat_template=True)
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    calls, figures = logged_rewards(GRPOTrainer, GRPOConfig, tmp_path / "out", model, prompts, bf16=False)
    path, learned = StringPath(model), LearnedReward(model)
    for (asked, completions), (mean, _) in zip(calls, figures, strict=True):
        assert mean == pytest.approx(math.fsum(path(asked, completions)) / 4, abs=1e-5)
        # The template ends the turn itself, so that both read the same.
        assert path(asked, completions) == pytest.approx(learned(asked, completions), abs=1e-5)
    said = string_path_difference(model, *calls[0])
    assert said["mean_difference_in_std"] == pytest.approx(0, abs=1e-4)
    assert said["correlation"] == pytest.approx(1)
    assert said["what_differs"] == "Both read the same tokens."


def test_a_model_with_three_outputs_cannot_be_given_by_its_name(tmp_path):
    settings = RewardModelSettings(labels={"LABEL_0": 1.0, "LABEL_1": 2.0, "LABEL_2": 3.0}, probabilities=True)
    model = saved(tmp_path / "judge", "bert", num_labels=3, settings=settings)
    with pytest.raises(RuntimeError, match="size mismatch|mismatched|ignore_mismatched_sizes"):
        logged_rewards(GRPOTrainer, GRPOConfig, tmp_path / "out", model, PROMPTS, bf16=False)
    with pytest.raises(ValueError, match="has 3 outputs"):
        StringPath(model)
    said = string_path_difference(model, PROMPTS, COMPLETIONS)
    assert said["texts"] == 0
    assert said["correlation"] is None
    assert "the head has 3 outputs" in said["what_differs"]


def test_differences_are_in_units_of_the_scores_own_spread(tmp_path):
    model = saved(tmp_path / "judge", "bert")
    ours = torch.tensor(LearnedReward(model)(PROMPTS, COMPLETIONS))
    theirs = torch.tensor(StringPath(model)(PROMPTS, COMPLETIONS))
    spread = ((ours - ours.mean()) ** 2).mean().sqrt()
    gaps = (ours - theirs).abs() / spread
    ratings = [1.0, 0.0, 3.0, 2.0]
    right = [ours[a] > ours[b] for a in range(4) for b in range(4) if ratings[a] > ratings[b]]
    right_there = [theirs[a] > theirs[b] for a in range(4) for b in range(4) if ratings[a] > ratings[b]]
    said = string_path_difference(model, PROMPTS, COMPLETIONS, ratings)
    assert said["texts"] == 4
    assert said["mean_difference_in_std"] == pytest.approx(gaps.mean().item(), abs=1e-4)
    assert said["max_difference_in_std"] == pytest.approx(gaps.max().item(), abs=1e-4)
    assert said["correlation"] == pytest.approx(torch.corrcoef(torch.stack([ours, theirs]))[0, 1].item(), abs=1e-4)
    assert said["pairwise_accuracy"] == pytest.approx(sum(right).item() / 6)
    assert said["string_path_pairwise_accuracy"] == pytest.approx(sum(right_there).item() / 6)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("bert", "TRL's own reading leaves out [CLS] at the beginning and [SEP] at the end."),
        ("llama", "TRL's own reading leaves out <eos> at the end."),
    ],
)
def test_it_says_what_is_left_out(kind, sentence, tmp_path):
    said = string_path_difference(saved(tmp_path, kind), PROMPTS, COMPLETIONS)
    assert said["what_differs"] == sentence
    assert said["pairwise_accuracy"] is said["string_path_pairwise_accuracy"] is None
    assert said["mean_difference_in_std"] > 0.01
    json.dumps(said, allow_nan=False)


def test_it_says_what_is_cut_and_what_is_no_rating(tmp_path):
    calibration = LogisticCalibration(scale=1.0, offset=0.0, low=-4.0, high=4.0)
    model = saved(tmp_path, "bert", settings=RewardModelSettings(calibration=calibration, max_length=8))
    # 9 bytes that are no word of the tokenizer's are 9 tokens, and [CLS] and [SEP] make 11 of them.
    said = string_path_difference(model, ["", ""], ["zqzqzqzqz", "q"])
    assert "takes off the beginning of 1 of 2 texts (over 8 tokens)" in said["what_differs"]
    assert said["what_differs"].endswith("Its rewards are logits, where LearnedReward makes ratings of them.")


def test_texts_that_trl_would_fail_on_are_left_out(tmp_path):
    model = saved(tmp_path, "bert", max_position_embeddings=16)
    with pytest.raises((IndexError, RuntimeError)):
        StringPath(model)([""], ["q" * 40])
    said = string_path_difference(model, [""] * 4, ["q" * 40, "", "good", "bad"])
    assert said["texts"] == 2
    assert "2 texts without a token, or with more than the model can read, were left out." in said["what_differs"]


def test_columns_have_one_length(tmp_path):
    with pytest.raises(ValueError, match="There are 4 prompts, 4 completions and 3 labels"):
        string_path_difference(tmp_path, PROMPTS, COMPLETIONS, [1.0, 2.0, 3.0])
