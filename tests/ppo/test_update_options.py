"""What an update minimizes, worked out token by token; when it stops; and that no option depends on the split."""

import json
import math

import pytest
import torch
from datasets import Dataset

from rlhf_recipes.ppo.batches import split_by_tokens
from tests.ppo.helpers import (
    OPENINGS,
    TEXTS,
    TOKENIZER,
    AtStep,
    everything,
    in_two_processes,
    largest_difference,
    logged,
    lora_policy,
    same_log,
    save_of_two,
    tiny_policy,
    trainer,
    weights,
)
from tests.tiny import tiny_tokenizer

EOS = TOKENIZER.eos_token_id


# --- The loss, token by token -------------------------------------------------------------------


def batch_of(run):
    """One mini-batch of a rollout, with advantages, ratios and values far enough apart to be clipped in every way."""
    run.state.global_step = 0
    (batch,), tokens = run.get_batch_samples(iter(range(9)), 1, torch.device("cpu"))
    noise = torch.Generator().manual_seed(3)

    def random(scale):
        return scale * torch.randn(batch["mask"].shape, generator=noise)

    batch["logprobs"] = batch["logprobs"] + random(0.8)
    batch["ref_logprobs"] = batch["ref_logprobs"] + random(0.5)
    batch |= {"advantages": random(1.0), "returns": random(1.0), "values": batch["values"] + random(0.5)}
    return batch, tokens


def loss_by_hand(run, batch, tokens, low, high, dual=None, entropy=0.0, kl=0.0, vf=0.1, value_range=0.2):
    names = ("prompt_ids", "prompt_mask", "completion_ids", "mask")
    with torch.no_grad():
        said = run.roles(**{name: batch[name] for name in names}, temperature=1.0)
    total, used = 0.0, set()
    for row in range(len(batch["mask"])):
        for t in range(int(batch["mask"][row].sum())):
            now, value = said["logprobs"][row, t].item(), said["values"][row, t].item()
            old, ref, advantage, target, old_value = (
                batch[name][row, t].item() for name in ("logprobs", "ref_logprobs", "advantages", "returns", "values")
            )
            ratio = math.exp(now - old)
            gain = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
            used.add(
                "low" if gain != ratio * advantage and ratio < 1 else "high" if gain != ratio * advantage else "free"
            )
            if dual is not None and advantage < 0 and gain < dual * advantage:
                gain = dual * advantage
                used.add("dual")
            near = min(max(value, old_value - value_range), old_value + value_range)
            error = max((value - target) ** 2, (near - target) ** 2) / 2
            total += -gain + vf * error + kl * ratio * (now - ref) ** 2 / 2 - entropy * said["entropy"][row, t].item()
    return total / tokens, used


@pytest.mark.parametrize(
    ("options", "hand", "cases"),
    [
        ({}, {"low": 0.2, "high": 0.2}, {"low", "high", "free"}),
        ({"cliprange": 0.1, "cliprange_high": 0.9}, {"low": 0.1, "high": 0.9}, {"low", "high", "free"}),
        ({"dual_clip": 1.5}, {"low": 0.2, "high": 0.2, "dual": 1.5}, {"dual"}),
        ({"cliprange": None}, {"low": 1.0, "high": math.inf}, {"free"}),
        ({"entropy_coef": 0.7}, {"low": 0.2, "high": 0.2, "entropy": 0.7}, {"free"}),
        ({"vf_coef": 2.0}, {"low": 0.2, "high": 0.2, "vf": 2.0}, {"free"}),
        ({"cliprange_value": None}, {"low": 0.2, "high": 0.2, "value_range": 99.0}, {"free"}),
        ({"use_kl_loss": True, "kl_estimator": "k2", "kl_coef": 0.4}, {"low": 0.2, "high": 0.2, "kl": 0.4}, {"free"}),
    ],
    ids=["plain", "asymmetric", "dual", "no clip", "entropy", "value", "no clip of values", "kl"],
)  # fmt: skip
def test_the_loss_is_what_a_hand_finds_token_by_token(tmp_path, options, hand, cases):
    run = trainer(tmp_path, num_mini_batches=1, allow_stochastic_policy=True, **options)  # the batch is made up
    batch, tokens = batch_of(run)
    expected, used = loss_by_hand(run, batch, tokens, **hand)
    assert cases <= used  # the batch has tokens of each kind
    loss = run.compute_loss(run.model, batch, num_items_in_batch=tokens)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    if "entropy_coef" in options:
        plain, _ = loss_by_hand(run, batch, tokens, **hand | {"entropy": 0.0})
        assert plain - expected > 0.5


def test_an_entropy_bonus_makes_the_policy_less_certain(tmp_path):
    entropies = {}
    for coef in (0.0, 0.5):
        run = trainer(tmp_path / str(coef), reward=lambda prompts, **kwargs: [0.0] * len(prompts), critic="none",
                      kl_coef=0.0, entropy_coef=coef, total_episodes=48)  # fmt: skip
        run.train()
        entropies[coef] = logged(run)[-1]["policy/entropy_avg"]
    assert entropies[0.5] > entropies[0.0] + 0.05


# --- Where updates stop -------------------------------------------------------------------------


class Watch(AtStep):
    def __init__(self):
        super().__init__("")
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append({name: tensor.clone() for name, tensor in kwargs["model"].state_dict().items()})


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_target_kl_leaves_out_what_comes_after_the_step_that_exceeded_it(tmp_path, optim):
    # The first step finds a KL of 0, the second that of the first one's change: above any target so near to 0.
    watch, plain_watch = Watch(), Watch()
    options = {"optim": optim, "learning_rate": 0.01, "weight_decay": 0.1, "num_mini_batches": 1, "num_ppo_epochs": 4}
    run = trainer(tmp_path / "stops", target_kl=1e-9, kept=[watch], **options)
    before = weights(run)
    run.train()
    trainer(tmp_path / "goes-on", kept=[plain_watch], **options).train()
    first, second, third, fourth = watch.seen[:4]
    assert largest_difference(before, first) > 0
    assert largest_difference(first, second) > 0
    assert largest_difference(second, third) == largest_difference(second, fourth) == 0
    assert largest_difference(second, plain_watch.seen[1]) == 0
    assert largest_difference(fourth, watch.seen[4]) > 0  # the next rollout is learned from again
    assert run.state.global_step == 8
    assert [entry["policy/updates_made"] for entry in logged(run)] == [0.5, 0.5]
    # Steps that were left out count in the schedule: after 4 of 8 steps half is left, at the end nothing.
    assert set(run.lr_scheduler.get_last_lr()) == {0.0}
    assert [entry["step"] for entry in logged(run)] == [4, 8]


def test_a_target_that_is_never_reached_changes_nothing(tmp_path):
    runs = [trainer(tmp_path / str(target), target_kl=target) for target in (None, 1e9)]
    for run in runs:
        run.train()
    assert largest_difference(*map(weights, runs)) == 0
    assert [entry["policy/updates_made"] for entry in logged(runs[1])] == [1, 1]


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 3])  # before, and among what is left out
def test_resumed_in_the_middle_of_a_stopped_rollout_equals_never_stopped(tmp_path, step):
    options = {"target_kl": 1e-9, "optim": "adamw_torch", "learning_rate": 0.01}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    trainer(
        tmp_path / "cut", kept=[AtStep("should_save", step), AtStep("should_training_stop", step)], **options
    ).train()
    resumed = trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(weights(resumed), weights(whole)) < 1e-7
    same_log(resumed, whole)


# --- Imitation ----------------------------------------------------------------------------------


def no_reward(prompts, **kwargs):
    return [0.0] * len(prompts)


ONLY_IMITATION = {"reward": no_reward, "critic": "none", "kl_coef": 0.0}


def supervised_loss(policy, rows):
    """Negative log-likelihood of the completions, each text by itself and without padding; mean over all tokens."""
    total, count = torch.zeros(()), 0
    for row in rows:
        prompt = TOKENIZER(row["prompt"])["input_ids"]
        ids = torch.tensor([*TOKENIZER(row["prompt"] + row["completion"])["input_ids"], EOS])
        logprobs = torch.log_softmax(policy(ids[None]).logits[0, :-1], dim=-1)
        for t in range(len(prompt), len(ids)):
            total, count = total - logprobs[t - 1, ids[t]], count + 1
    return total / count


def test_the_gradient_of_imitation_is_that_of_a_supervised_loss(tmp_path):
    texts = TEXTS.select(range(4))  # with a mini-batch of 4, each once
    run = trainer(tmp_path, imitation_coef=0.7, imitation_dataset=texts, temperature=0.5,
                  per_device_train_batch_size=4, gradient_accumulation_steps=2, **ONLY_IMITATION)  # fmt: skip
    run.state.global_step = 0
    batches, tokens = run.get_batch_samples(iter(range(9)), 1, torch.device("cpu"))
    parameters = list(run.roles.policy.parameters())
    loss = sum(run.compute_loss(run.model, batch, num_items_in_batch=tokens) for batch in batches)
    got = torch.autograd.grad(loss, parameters)
    expected = torch.autograd.grad(0.7 * supervised_loss(run.roles.policy, texts), parameters)
    assert max(float(gradient.abs().max()) for gradient in expected) > 0.05
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.fixture(scope="module")
def imitating(tmp_path_factory):
    run = trainer(tmp_path_factory.mktemp("imitating"), imitation_coef=0.5, imitation_dataset=TEXTS)
    run.train()
    return run


@pytest.mark.parametrize(("per_device", "accumulation"), [(4, 2), (1, 8)])
def test_imitation_does_not_depend_on_the_split(imitating, tmp_path, per_device, accumulation):
    run = trainer(tmp_path, imitation_coef=0.5, imitation_dataset=TEXTS, per_device_train_batch_size=per_device,
                  gradient_accumulation_steps=accumulation)  # fmt: skip
    run.train()
    assert largest_difference(weights(run), weights(imitating)) < 1e-6
    same_log(run, imitating, tolerance=1e-4)


def test_imitation_resumes_where_it_was(imitating, tmp_path):
    options = {"imitation_coef": 0.5, "imitation_dataset": TEXTS}
    trainer(tmp_path, kept=[AtStep("should_save", 3), AtStep("should_training_stop", 3)], **options).train()
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(weights(resumed), weights(imitating)) < 1e-7
    same_log(resumed, imitating)


def test_it_learns_a_demonstrated_text(tmp_path):
    text = Dataset.from_dict({"prompt": ["The film"], "completion": [" is quiet, funny and moving"]})
    run = trainer(tmp_path, imitation_coef=1.0, imitation_dataset=text, total_episodes=8 * 15, optim="adamw_torch",
                  learning_rate=0.03, lr_scheduler_type="constant", **ONLY_IMITATION)  # fmt: skip
    run.train()
    losses = [entry["loss/imitation_avg"] for entry in logged(run)]
    assert losses[0] > 2
    assert losses[-1] < 0.1
    prompt = torch.tensor([TOKENIZER("The film")["input_ids"]])
    written = run.roles.policy.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False
    )
    assert TOKENIZER.decode(written[0]) == "The film is quiet, funny and moving<eos>"


@pytest.mark.parametrize(
    "rows",
    [
        {"messages": [[{"role": "user", "content": "two"}, {"role": "assistant", "content": " brothers"}]]},
        {"prompt": [[{"role": "user", "content": "two"}]],
         "completion": [[{"role": "assistant", "content": " brothers"}]]},
        {"prompt": ["<|user|>two<|assistant|>"], "completion": [" brothers"]},
    ],
    ids=["messages", "prompt and completion of messages", "texts"],
)  # fmt: skip
def test_demonstrations_in_every_form(tmp_path, rows):
    run = trainer(tmp_path, tokenizer=tiny_tokenizer(chat_template=True), imitation_coef=0.1,
                  imitation_dataset=Dataset.from_dict(rows))  # fmt: skip
    ((ids, skipped),) = run.demonstrations
    assert TOKENIZER.decode(ids[:skipped]) == "<|user|>two<|assistant|>"
    assert TOKENIZER.decode(ids[skipped:]) == " brothers<eos>"


def test_demonstrations_without_a_coefficient_and_the_other_way_round_are_refused(tmp_path):
    with pytest.raises(ValueError, match="imitation_dataset was given, but imitation_coef is 0"):
        trainer(tmp_path, imitation_dataset=TEXTS)
    with pytest.raises(ValueError, match="nothing to imitate: give imitation_dataset"):
        trainer(tmp_path, imitation_coef=0.1)
    with pytest.raises(ValueError, match="needs prompt and completion, messages, or text, but has question"):
        trainer(tmp_path, imitation_coef=0.1, imitation_dataset=Dataset.from_dict({"question": OPENINGS}))
    with pytest.raises(ValueError, match="No row of the imitation_dataset has anything to imitate"):
        trainer(tmp_path, imitation_coef=0.1, imitation_dataset=TEXTS.select([]))


# --- All of it at once, however it is split -----------------------------------------------------


@pytest.fixture(scope="module")
def all_at_once(tmp_path_factory):
    run = everything(tmp_path_factory.mktemp("all"))
    before = weights(run)
    run.train()
    assert largest_difference(before, weights(run)) > 1e-2
    # So that each option had something to do.
    first, second = logged(run)
    assert 0 < first["rollout/finished"] < 1
    assert second["objective/kl_coef"] != first["objective/kl_coef"]
    return run


@pytest.mark.parametrize(("per_device", "accumulation"), [(4, 2), (1, 8)])
def test_all_options_in_one_run_do_not_depend_on_the_split(all_at_once, tmp_path, per_device, accumulation):
    run = everything(tmp_path, per_device, accumulation, rollout_forward_batch_size=3, logits_chunk_size=7)
    run.train()
    assert largest_difference(weights(run), weights(all_at_once)) < 1e-6
    same_log(run, all_at_once, tolerance=1e-4)


def test_all_options_in_one_run_resume(all_at_once, tmp_path):
    everything(tmp_path, kept=[AtStep("should_save", 3), AtStep("should_training_stop", 3)]).train()
    resumed = everything(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(weights(resumed), weights(all_at_once)) < 1e-7
    same_log(resumed, all_at_once)


def half_of_everything(folder):
    run = everything(folder / "run", per_device=2, accumulation=2, rollout_forward_batch_size=3)
    run.train()
    save_of_two(run, folder)


@pytest.mark.slow
def test_all_options_in_two_processes_give_the_weights_of_one(all_at_once, tmp_path):
    in_two_processes(tmp_path, half_of_everything)
    assert largest_difference(torch.load(tmp_path / "weights.pt"), weights(all_at_once)) < 1e-6
    for one, other in zip(json.loads((tmp_path / "log.json").read_text()), logged(all_at_once), strict=True):
        for name in (name for name in other if not name.startswith("time/")):
            assert one[name] == pytest.approx(other[name], abs=1e-4), name


@pytest.mark.parametrize("model", [tiny_policy, lora_policy])
def test_parts_of_a_micro_batch_change_nothing(tmp_path, model):
    """`max_tokens_per_batch` cuts a micro-batch of 4 rows into parts of one to four, as their lengths allow."""
    ends = {"stop_token_id": list(range(5, 120)), "learning_rate": 0.05, "total_episodes": 8}
    whole = trainer(tmp_path / "whole", model(), **ends)
    parts = trainer(tmp_path / "parts", model(), max_tokens_per_batch=14, **ends)
    whole.train()
    parts.train()
    assert largest_difference(weights(parts), weights(whole)) < 1e-6
    same_log(parts, whole, tolerance=1e-5)


def test_parts_have_at_most_that_many_tokens_and_hold_all_rows():
    lengths = torch.tensor([2, 3, 3, 9, 10, 40])
    batch = {
        "prompt_mask": torch.ones(6, 1),
        "mask": (torch.arange(39) < (lengths - 1)[:, None]).float(),
        "row": torch.arange(6),
        "demo_ids": torch.ones(2, 3),
    }
    parts = split_by_tokens(batch, 20)
    assert [part["row"].tolist() for part in parts] == [[0, 1, 2], [3, 4], [5]]  # 9, 20, and one that is longer alone
    assert ["demo_ids" in part for part in parts] == [True, False, False]
    assert split_by_tokens(batch, None) == [batch]
