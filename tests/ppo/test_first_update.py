"""At the first update of a rollout the policy is the one that was sampled: every ratio is 1, or the run stops."""

import logging
import random
from types import SimpleNamespace

import pytest
import torch

from rlhf_recipes.ppo.first_update import FirstUpdate, StochasticPolicyError
from tests.architectures import DECODERS, NOT_SAMPLED, each, tiny_model
from tests.ppo.helpers import AtStep, largest_difference, logged, tiny_policy, torchrun, trainer, weights

NOISE = {"hidden_dropout": 0.1, "attention_probs_dropout_prob": 0.1, "router_jitter_noise": 0.1,
         "input_jitter_noise": 0.1, "moe_jitter_eps": 0.1, "layerdrop": 0.5}  # fmt: skip


# Shortcuts that are put aside, noise in training, states that are carried on, bounded logits.
DEFAULT = ("bart", "falcon", "gemma2", "gpt2", "lfm2", "llama", "mamba", "mixtral", "opt", "phimoe", "rwkv")


@pytest.mark.parametrize("name", each([name for name in DECODERS if name not in NOT_SAMPLED], DEFAULT))
def test_at_learning_rate_0_the_ratio_is_1_with_every_architecture(tmp_path, name):
    run = trainer(tmp_path, tiny_model(name, **NOISE), learning_rate=0.0, total_episodes=8, num_ppo_epochs=1,
                  logits_chunk_size=7, num_sample_generations=0)  # fmt: skip
    run.train()
    assert logged(run)[0]["policy/ratio"] == pytest.approx(1, abs=1e-4)
    assert logged(run)[0]["policy/ratio_var"] < 1e-8


def test_opt_beyond_the_chunk_size(tmp_path):
    """64 x 53 tokens are more than the default of 2048."""
    options = {"per_device_train_batch_size": 64, "num_generations": 4, "total_episodes": 64}
    run = trainer(tmp_path, tiny_model("opt"), num_mini_batches=1, num_ppo_epochs=1, max_completion_length=53,
                  learning_rate=0.0, **options)  # fmt: skip
    run.train()
    assert logged(run)[0]["policy/ratio"] == pytest.approx(1, abs=1e-4)


def test_a_run_that_goes_on_in_the_middle_of_a_rollout_looks_anew(tmp_path):
    def run(folder, *kept):
        return trainer(tmp_path / folder, tiny_model("opt"), kept=kept, logits_chunk_size=7)

    whole = run("whole")
    whole.train()
    run("cut", AtStep("should_save", 3), AtStep("should_training_stop", 3)).train()
    resumed = run("cut")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.roles.put_aside["policy"] == {"chunks"}
    assert largest_difference(weights(resumed), weights(whole)) < 1e-6


def shaken(size=0.3, seed=0):
    """A policy that is another one each time it is asked in training."""
    policy, noise = tiny_policy(), random.Random(seed)
    policy.model.norm.register_forward_hook(
        lambda module, _, out: out * (1 + size * noise.random()) if module.training else out
    )
    return policy


def test_a_policy_that_cannot_be_made_steady_stops_before_a_weight_changes(tmp_path):
    run = trainer(tmp_path, shaken())
    before = weights(run)
    said = r"mean \|log ratio\| is .* at most 0.0001 is rounding in float32. Cause: LlamaForCausalLM computes"
    with pytest.raises(StochasticPolicyError, match=said):
        run.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(run).items())
    assert run.state.global_step == 0


def test_allowed_it_goes_on_and_says_so_once(tmp_path, caplog):
    run = trainer(tmp_path, shaken(), allow_stochastic_policy=True)
    with caplog.at_level(logging.WARNING, logger="rlhf_recipes"):
        run.train()
    assert run.state.global_step == 8
    assert len([line for line in caplog.messages if "This is said once" in line]) == 1


def test_weights_that_are_moved_between_rollout_and_update_are_noticed(tmp_path):
    run = trainer(tmp_path)
    collect = run.collect

    def moved(iteration):
        rollout = collect(iteration)
        with torch.no_grad():
            run.roles.policy.lm_head.weight.mul_(1.05)
        return rollout

    run.collect = moved
    with pytest.raises(StochasticPolicyError, match="none was found in the first batch"):
        run.train()


def judge(*micro_batches, dtype=torch.float32, mixed="no", allow=False):
    """Micro-batches of `(log ratios, mask)`, as they come in the first step and beyond it."""
    fake = SimpleNamespace(
        sizes=SimpleNamespace(world=1),
        accelerator=SimpleNamespace(mixed_precision=mixed),
        roles=SimpleNamespace(policy=torch.nn.Linear(1, 1, dtype=dtype)),
        settings=SimpleNamespace(allow_stochastic_policy=allow),
        is_world_process_zero=lambda: True,
    )
    first = FirstUpdate(fake)
    first.begin(2)
    for log_ratio, mask in micro_batches:
        first.see(torch.tensor([log_ratio]), torch.tensor([mask]))


STILL = ([0.0, 0.0], [1, 1])


def test_the_mean_is_over_the_tokens_of_the_whole_step():
    judge(([1.5e-4, -1.5e-4], [1, 1]), STILL)  # mean 7.5e-5
    with pytest.raises(StochasticPolicyError, match="its 4 tokens"):
        judge(([2.5e-4, -2.5e-4], [1, 1]), STILL)  # mean 1.25e-4: signs must not cancel
    judge(([5.0, 0.0], [0, 1]), STILL)  # padding does not count
    judge(STILL, STILL, ([5.0, 5.0], [1, 1]))  # the next step may have moved
    judge(([0.0, 0.0], [0, 0]), ([0.0, 0.0], [0, 0]))  # all masked


@pytest.mark.parametrize(("dtype", "mixed"), [(torch.bfloat16, "no"), (torch.float32, "bf16")])
def test_half_precision_may_round_more(dtype, mixed):
    judge(([0.03, 0.0], [1, 1]), STILL, dtype=dtype, mixed=mixed)
    with pytest.raises(StochasticPolicyError, match="at most 0.02 is rounding in less than float32"):
        judge(([0.1, 0.0], [1, 1]), STILL, dtype=dtype, mixed=mixed)


@pytest.mark.slow
def test_both_processes_stop_where_one_policy_draws(tmp_path):
    done = torchrun("two_processes_shaken.py", tmp_path, timeout=240)
    assert done.returncode != 0
    assert {file.name for file in tmp_path.glob("stopped-*")} == {"stopped-0", "stopped-1"}, done.stderr[-2000:]
