"""A critic learns stored returns: least squares, on the tokens that count, of a policy that stays as it is."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sklearn.metrics import explained_variance_score

from rlhf_recipes.modeling.logprobs import head_inputs, texts_of
from rlhf_recipes.ppo.warm_critic.config import CriticConfig
from rlhf_recipes.ppo.warm_critic.rollouts import StoredRollout
from rlhf_recipes.ppo.warm_critic.trainer import (
    CriticOnPolicy,
    CriticTrainer,
    collate,
    default_learning_rate,
    distance,
    earlier_explained_variance,
)
from tests.ppo.helpers import TOKENIZER, largest_difference, lora_policy, tiny_policy


def episodes(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        length = 2 + number % 4
        ids = torch.randint(4, 60, (3 + number % 3 + length,), generator=generator)
        rows.append(
            {
                "prompt_ids": ids[:-length],
                "completion_ids": ids[-length:],
                "returns": torch.randn(length, generator=generator),
                "loss_mask": torch.tensor([int(number % 5 > 0)] * length),
                "logprobs": torch.full((length,), -1.0),
                "values": torch.randn(length, generator=generator),
            }
        )
    return rows


def critic_trainer(folder, rows=None, kind="head", policy=None, callbacks=None, **options):
    options = {"num_train_epochs": 3, "learning_rate": 0.05, "eval_strategy": "no", "disable_tqdm": True} | options
    args = CriticConfig(output_dir=str(folder), rollouts="not read", use_cpu=True, critic=kind, **options)
    policy = tiny_policy() if policy is None else policy
    rows = episodes() if rows is None else rows
    return CriticTrainer(CriticOnPolicy(policy, kind, TOKENIZER), args, rows, rows[-5:], callbacks)


def states_of(policy, rows):
    batch = collate(rows)
    tokens = [batch[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "mask")]
    return head_inputs(policy, texts_of(*tokens)).double().numpy()


def test_the_states_are_what_the_head_reads_without_padding():
    policy, rows = tiny_policy(), episodes(3)
    expected = []
    for row in rows:
        text = torch.cat([row["prompt_ids"], row["completion_ids"]])[None]
        with torch.no_grad():
            expected.append(policy.model(text).last_hidden_state[0, len(row["prompt_ids"]) - 1 : -1])
    np.testing.assert_allclose(states_of(policy, rows), torch.cat(expected).double().numpy(), atol=1e-5)


def test_one_step_of_sgd_is_that_of_the_mean_over_tokens_however_it_is_split(tmp_path):
    """At values of 0 the gradient of half the squared error is -mean(return * state), over tokens that count."""
    rows = episodes()
    counts = torch.cat([row["loss_mask"] for row in rows]).numpy()
    returns = torch.cat([row["returns"] for row in rows]).double().numpy()
    wanted = 0.05 * (counts * returns) @ states_of(tiny_policy(), rows) / counts.sum()
    for size, accumulation in ((12, 1), (4, 3)):
        run = critic_trainer(tmp_path / str(size), rows, optim="sgd", num_train_epochs=1, max_grad_norm=1e9,
                             per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)  # fmt: skip
        run.train()
        assert run.state.global_step == 1
        np.testing.assert_allclose(run.model.critic.weight[0].detach().numpy(), wanted, atol=1e-6)


def test_it_comes_to_least_squares(tmp_path):
    rows = episodes(40)
    counts = torch.cat([row["loss_mask"] for row in rows]).bool().numpy()
    states = states_of(tiny_policy(), rows)[counts]
    returns = torch.cat([row["returns"] for row in rows]).double().numpy()[counts]
    design = np.column_stack([states, np.ones(len(states))])
    fitted = design @ np.linalg.lstsq(design, returns, rcond=None)[0]
    run = critic_trainer(tmp_path, rows, num_train_epochs=300, per_device_train_batch_size=40, weight_decay=0.0)
    run.train()
    found = run.evaluate(rows)
    assert found["eval_loss"] == pytest.approx(0.5 * np.mean((fitted - returns) ** 2), rel=0.02)
    assert found["eval_explained_variance"] == pytest.approx(explained_variance_score(returns, fitted), abs=0.02)


def test_the_explained_variance_is_that_of_the_tokens_that_count_for_any_batch(tmp_path):
    rows = episodes()
    run = critic_trainer(tmp_path, rows)
    with torch.no_grad():
        run.model.critic.weight.copy_(torch.linspace(-1, 1, 16)[None])
    counts = torch.cat([row["loss_mask"] for row in rows]).bool().numpy()
    values = (states_of(tiny_policy(), rows) @ torch.linspace(-1, 1, 16).double().numpy())[counts]
    returns = torch.cat([row["returns"] for row in rows]).double().numpy()[counts]
    for size in (12, 5):
        run.args.per_device_eval_batch_size = size
        found = run.evaluate(rows)
        assert found["eval_explained_variance"] == pytest.approx(explained_variance_score(returns, values), rel=1e-4)
        assert found["eval_mean_return"] == pytest.approx(returns.mean(), rel=1e-5)
    stored = torch.cat([row["values"] for row in rows]).double().numpy()[counts]
    assert earlier_explained_variance(rows) == pytest.approx(explained_variance_score(returns, stored), rel=1e-4)


@pytest.mark.parametrize(("kind", "lora"), [("head", False), ("policy", False), ("policy", True)])
def test_the_critic_learns_and_the_policy_stays(tmp_path, kind, lora):
    run = critic_trainer(tmp_path, kind=kind, policy=lora_policy() if lora else None, save_strategy="epoch")
    before = copy.deepcopy(run.model.state_dict())
    run.train()
    after = run.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("critic.") for name in moved)
    assert run.evaluate()["eval_loss"] < run.state.log_history[0]["loss"]
    assert (tmp_path / f"checkpoint-{run.state.global_step}" / "critic").is_dir()
    other = critic_trainer(tmp_path / "other", kind=kind, policy=lora_policy() if lora else None)
    other.model.load_weights(tmp_path / f"checkpoint-{run.state.global_step}")
    assert largest_difference(other.model.state_dict(), after) == 0


def test_stopped_and_resumed_equals_never_stopped(tmp_path):
    whole = critic_trainer(tmp_path, save_strategy="epoch", per_device_train_batch_size=4)
    whole.train()
    resumed = critic_trainer(tmp_path / "resumed", per_device_train_batch_size=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert largest_difference(resumed.model.state_dict(), whole.model.state_dict()) < 1e-7


def test_the_learning_rate_is_that_of_the_kind_of_critic(tmp_path):
    lora = get_peft_model(tiny_policy(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    found = [
        default_learning_rate(CriticOnPolicy(policy, kind, TOKENIZER).critic)
        for kind, policy in (("head", tiny_policy()), ("policy", tiny_policy()), ("policy", lora))
    ]
    assert found == [0.04, 1e-5, 1e-4]  # 16 wide


def test_how_far_the_policy_is_from_who_wrote_is_the_mean_log_ratio_and_said_where_it_is_large(caplog):
    policy, rows = tiny_policy(), episodes(4)
    for row in rows:
        text = torch.cat([row["prompt_ids"], row["completion_ids"]])[None]
        with torch.no_grad():
            logprobs = (policy(text).logits[0] / 0.7).log_softmax(-1)[len(row["prompt_ids"]) - 1 : -1]
        row["logprobs"] = logprobs.gather(1, row["completion_ids"][:, None])[:, 0] + 0.25
    assert distance(policy, [StoredRollout(0, 0.7, rows)], TOKENIZER) == pytest.approx(0.25, abs=1e-5)
    assert not caplog.records
    for row in rows:
        row["logprobs"] += 1.05  # to 1.3, which no rounding makes 1.2
    distance(policy, [StoredRollout(0, 0.7, rows)], TOKENIZER)
    assert "1.3 nats per token away from this one" in caplog.text


def test_tokens_that_the_policy_does_not_know_are_refused():
    rows = episodes(2)
    rows[0]["completion_ids"][0] = 100_000
    with pytest.raises(ValueError, match="of the stored rollouts has token 100000"):
        distance(tiny_policy(), [StoredRollout(0, 0.7, rows)], TOKENIZER)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rollouts": None}, "rollouts is missing: name the folder"),
        ({"critic": "none"}, "critic is 'none', which leaves nothing to train"),
        ({"critic": "reward_model"}, "name its folder or id"),
        ({"held_out": 1.0}, "held_out 1.0; give 1 or more, and a number between 0 and 1"),
        ({"num_rollouts": 0}, "num_rollouts is 0"),
        ({"gamma": 1.5}, "gamma 1.5"),
        ({"push_to_hub": True}, "push_to_hub is True, but it has no effect here"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        CriticConfig(**{"output_dir": str(tmp_path), "rollouts": "runs/ppo", "use_cpu": True, **options})
