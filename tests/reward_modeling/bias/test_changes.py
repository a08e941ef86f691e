import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.modeling.reading import model_outputs
from rlhf_recipes.reward_modeling.bias.changes import (
    as_trl_reads,
    changed,
    check_exact,
    measure_changes,
    measure_encodings,
    text_changes,
)
from rlhf_recipes.rewards.learned import LearnedReward
from tests.tiny import SENTENCES, save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer


def length(prompts, completions, **kwargs):
    return [float(len(text)) for text in completions]


def learned(kind="bert", chat_template=False, **kwargs):
    tokenizer = tiny_tokenizer(kind, chat_template=chat_template)
    return LearnedReward(tiny_classifier(tokenizer, kind), tokenizer, **kwargs)


PROMPTS, TEXTS = [""] * len(SENTENCES), list(SENTENCES)


# --- edits -----------------------------------------------------------------------------------------------


def test_what_becomes_of_a_text():
    edited = {name: change("One. Two! ") for name, change in text_changes("So it is.").items()}
    assert edited == {
        "said twice": "One. Two! One. Two! ",
        "neutral sentence": "One. Two! So it is.",
        "bullets": "- One.\n- Two!",
        "bold": "**One. Two!**",
        "spaces at the end": "One. Two!   ",
        "newline at the end": "One. Two! \n",
        "lower case": "one. two! ",
        "upper case": "ONE. TWO! ",
    }


def test_of_messages_the_last_text_is_edited():
    first, last = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    assert changed([first, last], str.upper) == [first, {"role": "assistant", "content": "B"}]
    blocks = [{"type": "text", "text": "b"}, {"type": "image"}]
    assert changed([{"role": "assistant", "content": blocks}], str.upper)[0]["content"] == [
        {"type": "text", "text": "B"},
        {"type": "image"},
    ]
    assert last["content"] == "b"


def test_effects_worked_out_by_hand():
    # Lengths 2 and 6: a standard deviation of 2. Said twice, a text has its own length and a space more.
    found = measure_changes(length, ["", ""], ["ab", "abcdef"])
    assert found["said twice"]["effect"] == pytest.approx((3 / 2 + 7 / 2) / 2)
    assert found["said twice"]["largest"] == pytest.approx(7 / 2)
    assert found["newline at the end"] == {
        "effect": 0.5, "effect_ci95": [0.5, 0.5], "size": 0.5, "largest": 0.5, "texts": 2
    }  # fmt: skip
    assert found["upper case"]["size"] == 0.0


def test_only_texts_that_change_count():
    found = measure_changes(length, ["", ""], ["ab", "CD"], {"lower": str.lower}, std=1.0)
    assert found["lower"]["texts"] == 1


def test_effects_that_do_not_exist_are_none():
    def some(prompts, completions, **kwargs):
        return [None if "x" in text else float(len(text)) for text in completions]

    found = measure_changes(some, ["", "", ""], ["ab", "x", "abcd"])["said twice"]
    assert found["texts"] == 2
    constant = measure_changes(lambda prompts, completions: [1.0] * len(completions), ["", ""], ["a", "b"])
    assert constant["bold"]["effect"] is None
    assert measure_changes(length, [], [])["bold"]["texts"] == 0


# --- what must be so -------------------------------------------------------------------------------------


def test_a_score_of_one_text_holds():
    found = check_exact(length, PROMPTS, TEXTS)
    assert found == {name: {"largest": 0.0, "texts": 6, "holds": True} for name in ("twice", "order", "batch")}


def test_scores_that_depend_on_others_are_found():
    def by_rank(prompts, completions, **kwargs):
        return np.argsort(np.argsort([len(text) for text in completions])).astype(float).tolist()

    def by_place(prompts, completions, **kwargs):
        return [float(place) for place in range(len(completions))]

    assert check_exact(by_rank, PROMPTS, TEXTS)["batch"]["holds"] is False
    assert check_exact(by_rank, PROMPTS, TEXTS)["order"]["holds"] is True
    assert check_exact(by_place, PROMPTS, TEXTS)["order"]["largest"] == 5.0


def test_a_score_that_changes_from_call_to_call_is_found():
    generator = np.random.default_rng(0)
    noisy = lambda prompts, completions: generator.normal(size=len(completions)).tolist()  # noqa: E731
    assert check_exact(noisy, PROMPTS, TEXTS)["twice"]["holds"] is False


def test_a_text_that_is_scored_only_in_company_does_not_hold():
    def in_company(prompts, completions, **kwargs):
        return [1.0 if len(completions) > 1 else None] * len(completions)

    assert check_exact(in_company, PROMPTS, TEXTS)["batch"] == {"largest": None, "texts": 6, "holds": False}
    nothing = check_exact(lambda prompts, completions: [None] * len(completions), PROMPTS, TEXTS)
    assert nothing["twice"] == {"largest": None, "texts": 0, "holds": None}


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_models_score_a_text_by_itself(kind):
    found = check_exact(learned(kind, batch_size=4), PROMPTS, TEXTS)
    assert all(of["holds"] for of in found.values()), found


# --- how a text is put before a model --------------------------------------------------------------------


def test_padding_on_the_right_changes_nothing_and_on_the_left_shifts_an_encoder():
    found = measure_encodings(learned("bert"), PROMPTS, TEXTS)
    assert found["padding on the right"]["largest"] < 1e-4
    assert found["padding on the left"]["size"] > 0.01


def test_a_decoder_with_rotary_positions_can_be_padded_on_both_sides():
    found = measure_encodings(learned("llama"), PROMPTS, TEXTS)
    assert found["padding on the right"]["largest"] < 1e-3
    assert found["padding on the left"]["largest"] < 1e-3


def test_effects_of_tokens_are_those_of_the_model_itself():
    reward = learned("bert")
    tokenizer, model = reward.tokenizer, reward.model
    text = TEXTS[0]
    ids = tokenizer(text).input_ids  # [CLS] ... [SEP]
    with torch.inference_mode():
        usual, without, twice = (model(torch.tensor([row])).logits.item() for row in (ids, ids[1:-1], [ids[0], *ids]))
    found = measure_encodings(reward, [""], [text], std=2.0)
    assert found["no special tokens"]["effect"] == pytest.approx((without - usual) / 2, abs=1e-5)
    assert found["one more beginning"]["effect"] == pytest.approx((twice - usual) / 2, abs=1e-5)
    assert found["chat template"]["texts"] == 0


def test_a_chat_template_is_tried_where_there_is_one():
    reward = learned("llama", chat_template=True)
    prompts = ["Well?"] * 6
    found = measure_encodings(reward, prompts, TEXTS, std=1.0)["chat template"]
    messages = [{"role": "user", "content": "Well?"}]
    answers = [[{"role": "assistant", "content": text}] for text in TEXTS]
    wanted = np.mean(reward([messages] * 6, answers)) - np.mean(reward(prompts, TEXTS))
    assert found["effect"] == pytest.approx(wanted, abs=1e-5)
    assert found["texts"] == 6


def test_texts_without_room_for_one_more_token_are_left_out():
    reward = learned("bert")
    longest = max(len(reward.tokenizer(text).input_ids) for text in TEXTS)
    reward.max_length = longest
    assert measure_encodings(reward, PROMPTS, TEXTS)["one more beginning"]["texts"] < 6


# --- by name in TRL: its real trainers are run, and the rewards that they log compared -------------------


ASKED = ["The film is", "A dull script", "What a", "It was bad, but the"]
ANSWERS = [" a quiet story.", " and a tired cast", " wonderful little picture!", " music was good"]


class Recorder:
    """A reward of nothing that keeps what it is asked."""

    __name__ = "recorder"

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, **kwargs):
        self.calls.append((prompts, completions))
        return [0.0] * len(prompts)


def saved(folder, kind, chat_template=False, **model):
    tokenizer = tiny_tokenizer(kind, chat_template=chat_template)
    save_tiny(folder, tiny_classifier(tokenizer, kind, **model), tokenizer)
    RewardModelSettings(append_eos=kind == "llama").save(folder)
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


def by_name(reward, prompts, completions, bf16=False):
    ids = [as_trl_reads(reward, *both) for both in zip(prompts, completions, strict=True)]
    scores = torch.empty(len(ids))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for rows, output in model_outputs(reward.model, ids, 32, reward.tokenizer.pad_token_id):
            scores[rows] = output.logits[:, 0].float()
    return scores


@pytest.mark.parametrize(
    ("trainer", "kind", "bf16"),
    [
        ((GRPOTrainer, GRPOConfig), "bert", False),
        ((RLOOTrainer, RLOOConfig), "llama", True),
        pytest.param((GRPOTrainer, GRPOConfig), "llama", True, marks=pytest.mark.slow),
        pytest.param((RLOOTrainer, RLOOConfig), "bert", False, marks=pytest.mark.slow),
    ],
)
def test_the_rewards_by_name_are_those_that_trl_logs(trainer, kind, bf16, tmp_path):
    model = saved(tmp_path / "judge", kind)
    calls, figures = logged_rewards(*trainer, tmp_path / "out", model, ASKED, bf16)
    reward = LearnedReward(model)
    for texts, (mean, std) in zip(calls, figures, strict=True):
        # In bfloat16 a sum is rounded by what it is batched with, to about 8 bits of the largest part.
        tolerance = 2e-2 if bf16 else 1e-5
        scores = by_name(reward, *texts, bf16)
        assert mean == pytest.approx(scores.mean().item(), abs=tolerance)
        assert std == pytest.approx(scores.std().item(), abs=tolerance)
        assert abs(mean - np.mean(reward(*texts))) > 5 * tolerance


def test_the_rewards_of_conversations_are_those_that_trl_logs(tmp_path):
    model = saved(tmp_path / "judge", "llama", chat_template=True)
    prompts = [[{"role": "user", "content": prompt}] for prompt in ASKED]
    calls, figures = logged_rewards(GRPOTrainer, GRPOConfig, tmp_path / "out", model, prompts, bf16=False)
    reward = LearnedReward(model)
    for texts, (mean, _) in zip(calls, figures, strict=True):
        assert mean == pytest.approx(by_name(reward, *texts).mean().item(), abs=1e-5)
        # The template ends the turn itself, so that both read the same.
        assert by_name(reward, *texts).tolist() == pytest.approx(reward(*texts), abs=1e-5)
        assert measure_encodings(reward, *texts)["by name in TRL"]["texts"] == 0


def test_a_model_with_three_outputs_cannot_be_given_by_its_name(tmp_path):
    model = saved(tmp_path / "judge", "bert", num_labels=3)
    with pytest.raises(RuntimeError, match="size mismatch|mismatched|ignore_mismatched_sizes"):
        logged_rewards(GRPOTrainer, GRPOConfig, tmp_path / "out", model, ASKED, bf16=False)
    assert as_trl_reads(LearnedReward(model, label=0), "a", "b") is None


def test_differences_by_name_are_in_units_of_the_scores_own_spread(tmp_path):
    reward = LearnedReward(saved(tmp_path / "judge", "bert"))
    ours, theirs = torch.tensor(reward(ASKED, ANSWERS)), by_name(reward, ASKED, ANSWERS)
    gaps = (ours - theirs).abs() / ours.std(unbiased=False)
    said = measure_encodings(reward, ASKED, ANSWERS)["by name in TRL"]
    assert said["texts"] == 4
    assert (said["size"], said["largest"]) == pytest.approx((gaps.mean().item(), gaps.max().item()), abs=1e-4)
    assert said["correlation"] == pytest.approx(torch.corrcoef(torch.stack([ours, theirs]))[0, 1].item(), abs=1e-4)


def test_texts_that_trl_would_fail_on_are_left_out(tmp_path):
    reward = LearnedReward(saved(tmp_path, "bert", max_position_embeddings=16))
    with pytest.raises((IndexError, RuntimeError)):
        by_name(reward, [""], ["q" * 40])
    said = measure_encodings(reward, [""] * 4, ["q" * 40, "", "good", "bad"])["by name in TRL"]
    assert said["texts"] == 2  # one is too long, and one has no token


def test_conversations_without_a_template_cannot_be_read_by_name():
    assert as_trl_reads(learned("llama"), [{"role": "user", "content": "a"}], [{"role": "assistant"}]) is None
