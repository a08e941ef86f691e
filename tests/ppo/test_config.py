"""Batch arithmetic with numbers worked by hand, and every refusal of `PPOConfig`."""

import pytest

from rlhf_recipes.ppo.config import PPOConfig


def config(**kwargs):
    return PPOConfig(**{"output_dir": "unused", "use_cpu": True} | kwargs)


def test_a_rollout_is_the_batch_of_all_micro_batches_and_divides_into_mini_batches():
    args = config(
        per_device_train_batch_size=16,
        gradient_accumulation_steps=4,
        num_mini_batches=2,
        num_ppo_epochs=3,
        total_episodes=640,
    )
    sizes = args.batch_sizes(world_size=1)
    assert sizes.rollout == 64  # 16 x 4
    assert sizes.local_rollout == 64
    assert sizes.mini == 32  # 64 / 2
    assert sizes.micro == 16
    assert sizes.accumulation == 2  # 32 / 16
    assert sizes.updates == 6  # 3 epochs x 2 mini-batches
    assert sizes.iterations == 10  # 640 / 64


def test_a_mini_batch_smaller_than_the_device_batch_is_one_micro_batch():
    args = config(per_device_train_batch_size=16, gradient_accumulation_steps=4, num_mini_batches=8)
    sizes = args.batch_sizes(world_size=1)
    assert (sizes.mini, sizes.micro, sizes.accumulation) == (8, 8, 1)  # 64 / 8
    assert sizes.updates == 32  # 4 epochs, the default, x 8


def test_processes_multiply_the_rollout_but_not_what_each_of_them_does():
    args = config(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_mini_batches=2, total_episodes=32)
    sizes = args.batch_sizes(world_size=2)
    assert (sizes.world, sizes.rollout, sizes.local_rollout) == (2, 16, 8)
    assert (sizes.mini, sizes.micro, sizes.accumulation) == (8, 4, 1)  # 16 / 2 over both, 4 on each
    assert sizes.iterations == 2


@pytest.mark.parametrize(("episodes", "iterations"), [(1, 1), (8, 1), (9, 2), (16, 2), (17, 3)])
def test_total_episodes_is_rounded_up_to_whole_rollouts(episodes, iterations):
    args = config(per_device_train_batch_size=8, total_episodes=episodes)
    assert args.batch_sizes(world_size=1).iterations == iterations


def test_without_total_episodes_it_is_passes_over_the_prompts():
    args = config(per_device_train_batch_size=8, num_train_epochs=1.5)
    assert args.batch_sizes(num_prompts=40, world_size=1).iterations == 8  # 60 episodes / 8 = 7.5


def test_mini_batches_that_do_not_divide_are_refused_with_both_numbers_and_a_way_out():
    with pytest.raises(ValueError, match="12 episodes.*num_mini_batches 8 does not divide.*num_mini_batches 4"):
        config(per_device_train_batch_size=4, gradient_accumulation_steps=3, num_mini_batches=8)


def test_micro_batches_that_do_not_divide_are_refused_with_both_numbers_and_a_way_out():
    wanted = "6 episodes.*per_device_train_batch_size 4 does not divide.*per_device_train_batch_size 2"
    with pytest.raises(ValueError, match=wanted):
        config(per_device_train_batch_size=4, gradient_accumulation_steps=3, num_mini_batches=2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_ppo_epochs", 0, "num_ppo_epochs is 0; give 1 or more"),
        ("num_mini_batches", 0, "num_mini_batches is 0; give 1 or more"),
        ("per_device_train_batch_size", 0, "per_device_train_batch_size is 0; give 1 or more"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps is 0; give 1 or more"),
        ("max_prompt_length", 0, "max_prompt_length is 0"),
        ("max_completion_length", 0, "max_completion_length is 0"),
        ("rollout_forward_batch_size", 0, "rollout_forward_batch_size is 0"),
        ("total_episodes", 0, "total_episodes is 0"),
        ("temperature", 0.0, "temperature is 0.0"),
        ("gamma", 1.5, "gamma is 1.5; give a number from 0 to 1"),
        ("lam", -0.1, "lam is -0.1"),
        ("cliprange", 0.0, "cliprange is 0.0; give a number above 0"),
        ("cliprange_value", -1.0, "cliprange_value is -1.0"),
        ("kl_coef", -0.05, "kl_coef is -0.05; give 0 or more"),
        ("vf_coef", -1.0, "vf_coef is -1.0; give 0 or more"),
        ("kl_estimator", "kl", "'kl'"),
    ],
)
def test_numbers_out_of_range_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        config(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("auto_find_batch_size", True),
        ("dataloader_num_workers", 2),
        ("dataloader_drop_last", True),
        ("label_smoothing_factor", 0.1),
        ("neftune_noise_alpha", 5.0),
        ("save_only_model", True),
        ("max_steps", 100),
    ],
)
def test_options_that_ppo_would_ignore_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, but PPO makes no use of it"):
        config(**{name: value})


def test_columns_must_stay_for_the_rewards():
    with pytest.raises(ValueError, match="remove_unused_columns must stay off"):
        config(remove_unused_columns=True)


def test_an_option_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="num_minibatches"):
        config(num_minibatches=2)


def test_precision_is_chosen_by_the_machine_and_nothing_is_sent_anywhere():
    args = config()
    assert args.bf16 is False
    assert args.report_to == []
    assert not args.push_to_hub


def test_the_copy_for_trainer_counts_optimizer_steps_and_the_users_object_stays():
    args = config(
        per_device_train_batch_size=16,
        gradient_accumulation_steps=4,
        num_mini_batches=2,
        num_ppo_epochs=3,
        total_episodes=640,
        logging_steps=1,
        save_steps=5,
        eval_steps=2,
    )
    before = args.to_dict()
    copied = args.for_trainer(args.batch_sizes(world_size=1))
    assert copied.max_steps == 60  # 10 rollouts x 6 optimizer steps
    assert (copied.logging_steps, copied.save_steps, copied.eval_steps) == (6, 30, 12)  # x 6
    assert (copied.per_device_train_batch_size, copied.gradient_accumulation_steps) == (16, 2)
    assert args.to_dict() == before
    assert (args.gradient_accumulation_steps, args.max_steps, args.save_steps) == (4, -1, 5)


def test_steps_as_a_share_of_the_run_stay_a_share():
    args = config(per_device_train_batch_size=8, total_episodes=80, save_steps=0.5, num_ppo_epochs=2)
    copied = args.for_trainer(args.batch_sizes(world_size=1))
    assert (copied.save_steps, copied.max_steps) == (0.5, 20)
