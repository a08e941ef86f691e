"""What is computed while tokens are sampled, kept for the update, and corrected where another precision drew them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlhf_recipes.ppo import PPOConfig
from tests.ppo.helpers import AtStep, largest_difference, logged, same_log, tiny_policy, trainer, weights


def upper(kind):
    """A policy of four layers of which the upper two are trained, by adapters or themselves."""
    model = tiny_policy(num_layers=4)
    if kind == "lora":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = LoraConfig(r=4, layers_to_transform=[2, 3], target_modules=["q_proj", "up_proj"])
            return get_peft_model(model, config)
    model.requires_grad_(False)
    for layer in model.model.layers[2:]:
        layer.requires_grad_(True)
    return model


@pytest.mark.parametrize("kind", ["lora", "layers"])
@pytest.mark.parametrize("critic", ["head", "adapter", "policy"])
def test_with_and_without_the_trunk_the_same_is_learned(tmp_path, kind, critic):
    if kind == "layers" and critic == "adapter":
        return  # it needs adapters: refused elsewhere
    runs = []
    for reuse in (True, False):
        run = trainer(tmp_path / str(reuse), upper(kind), critic=critic, reuse_trunk=reuse, vf_coef=0.5)
        run.train()
        runs.append(run)
    assert runs[0].keeps_trunk
    assert runs[0].rollout.trunk.shape[-1] == 16
    assert runs[1].rollout.trunk is None
    assert largest_difference(*map(weights, runs)) < 1e-6
    same_log(*runs, tolerance=2e-5)


def test_what_takes_too_much_memory_is_not_kept_and_nothing_changes(tmp_path):
    kept, not_kept = (
        trainer(tmp_path / f"{limit}", upper("lora"), trunk_memory_gb=limit, gradient_checkpointing=True)
        for limit in (1.0, 1e-6)
    )
    kept.train()
    not_kept.train()
    assert (kept.keeps_trunk, not_kept.keeps_trunk) == (True, False)
    assert not_kept.rollout.trunk is None
    assert largest_difference(weights(kept), weights(not_kept)) < 1e-6


def test_a_rollout_that_is_gone_on_with_has_its_states_and_goes_on_as_if_never_stopped(tmp_path):
    def run(folder, *kept):
        return trainer(tmp_path / folder, upper("lora"), kept=kept)

    whole = run("whole")
    whole.train()
    run("cut", AtStep("should_save", 3), AtStep("should_training_stop", 3)).train()
    resumed = run("cut")
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(weights(resumed), weights(whole)) == 0
    assert resumed.roles.as_written


def test_lower_layers_run_while_sampling_and_never_in_the_update(tmp_path):
    model, calls = upper("lora"), []
    run = trainer(tmp_path, model, total_episodes=16)
    lowest = model.get_base_model().model.layers[0].mlp
    lowest.register_forward_hook(lambda *_: calls.append((run.state.global_step, run.interrupt.collecting)))
    run.train()
    assert [at for at, collecting in calls if not collecting] == []
    assert {at for at, _ in calls} == {0, 4}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_half_precision_samples_and_float32_learns_with_weights(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("rlhf_recipes.modeling.generation.copies.cpu_has_bfloat16", lambda: True)
    model = upper("lora") if kind == "lora" else tiny_policy()
    run = trainer(tmp_path, model, rollout_dtype="bfloat16", total_episodes=24)
    run.train()
    rollout = run.rollout
    assert run.sampling_copy.model.dtype == torch.bfloat16
    assert not run.roles.as_written
    real = rollout.mask.bool()
    expected = torch.exp(rollout.logprobs - rollout.sampled_logprobs).clamp(max=2.0)
    torch.testing.assert_close(rollout.weights[real], expected[real])
    assert 0 < (rollout.weights[real] - 1).abs().mean() < 0.05
    last = logged(run)[-1]
    assert last["rollout/importance"] == pytest.approx(float(rollout.weights[real].mean()), abs=1e-5)
    assert last["rollout/importance_capped"] == 0
    assert abs(last["rollout/sampling_kl"]) < 0.02


def test_the_copy_has_learned_what_the_policy_has(tmp_path):
    """In float32 a copy with adapters merged draws what the policy draws, rollout after rollout."""
    plain = trainer(tmp_path / "plain", upper("lora"), total_episodes=24, learning_rate=0.5)
    copied = trainer(tmp_path / "copied", upper("lora"), total_episodes=24, learning_rate=0.5, rollout_dtype="float32")
    plain.train()
    copied.train()
    assert torch.equal(plain.rollout.completion_ids, copied.rollout.completion_ids)
    assert largest_difference(weights(plain), weights(copied)) < 1e-5


def test_a_precision_that_a_machine_lacks_is_refused_before_anything_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_recipes.modeling.generation.copies.cpu_has_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="no instructions for bfloat16"):
        PPOConfig(output_dir=str(tmp_path), rollout_dtype="bfloat16", use_cpu=True)
    with pytest.raises(ValueError, match="float16 more slowly"):
        PPOConfig(output_dir=str(tmp_path), rollout_dtype="float16", use_cpu=True)
    with pytest.raises(ValueError, match="give bfloat16, float16 or float32"):
        PPOConfig(output_dir=str(tmp_path), rollout_dtype="int8", use_cpu=True)
