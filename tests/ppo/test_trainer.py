"""What PPO promises as a whole: the same result however it is split, exact resume, errors that stop, and learning."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from rlhf_recipes.ppo.metrics import GLOSSARY
from rlhf_recipes.rewards import RewardError
from tests.ppo.helpers import (
    DATA,
    OPENINGS,
    TOKENIZER,
    AtStep,
    in_two_processes,
    largest_difference,
    logged,
    lora_policy,
    many_short_tokens,
    save_of_two,
    tiny_policy,
    trainer,
    weights,
)
from tests.tiny import tiny_causal_lm, tiny_tokenizer


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory):
    """One run of two rollouts in one piece, and its weights before and after."""
    run = trainer(tmp_path_factory.mktemp("whole"))
    before = weights(run)
    run.train()
    return run, before, weights(run)


# --- The first step, and the count of steps -----------------------------------------------------


def test_on_the_first_minibatch_the_ratio_is_one_and_the_kl_zero(tmp_path):
    run = trainer(tmp_path, num_ppo_epochs=1, num_mini_batches=1, total_episodes=8)
    run.train()
    (first,) = logged(run)
    assert first["policy/ratio"] == pytest.approx(1, abs=1e-6)
    assert first["policy/approxkl_avg"] == pytest.approx(0, abs=1e-10)
    assert first["policy/clipfrac_avg"] == 0
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)
    # Whitened advantages have mean 0, and at ratio 1 the policy loss is minus that mean.
    assert first["loss/policy_avg"] == pytest.approx(0, abs=1e-6)


def test_dropout_of_adapters_does_not_spoil_the_ratio(tmp_path):
    run = trainer(tmp_path, lora_policy(), num_ppo_epochs=1, num_mini_batches=1, total_episodes=8)
    run.train()
    assert logged(run)[0]["policy/ratio"] == pytest.approx(1, abs=1e-6)
    assert logged(run)[0]["objective/kl"] == pytest.approx(0, abs=1e-5)


def test_every_rollout_gets_epochs_times_mini_batches_optimizer_steps(reference_run):
    run, before, after = reference_run
    assert run.state.global_step == 8  # 2 rollouts x 2 epochs x 2 mini-batches
    assert largest_difference(before, after) > 1e-3
    assert [entry["episode"] for entry in logged(run)] == [8, 16]
    assert [entry["step"] for entry in logged(run)] == [4, 8]


def test_an_update_takes_every_episode_once(tmp_path):
    run = trainer(tmp_path, num_mini_batches=4)
    run.state.global_step = 0
    seen = []
    for _ in range(4):
        batches, tokens = run.get_batch_samples(iter(range(99)), 1, torch.device("cpu"))
        assert sum(int(batch["mask"].sum()) for batch in batches) == tokens
        seen += [row.tolist() for batch in batches for row in batch["completion_ids"]]
        run.state.global_step += 1
    assert sorted(seen) == sorted(run.rollout.completion_ids.tolist())


def test_each_pass_takes_every_prompt_once_in_an_order_of_its_own(tmp_path):
    run = trainer(tmp_path, total_episodes=32)
    first, second = ([*run.rows_of(i), *run.rows_of(i + 1)] for i in (0, 2))
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second


# --- The same result however it is split --------------------------------------------------------


@pytest.mark.parametrize(("per_device", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_micro_batches_change_nothing(reference_run, tmp_path, per_device, accumulation):
    run = trainer(
        tmp_path,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        rollout_forward_batch_size=3,
    )
    run.train()
    assert run.state.global_step == 8
    assert largest_difference(weights(run), reference_run[2]) < 1e-6
    for one, other in zip(logged(run), logged(reference_run[0]), strict=True):
        for name in set(GLOSSARY) & set(other):
            assert one[name] == pytest.approx(other[name], abs=1e-5), name
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_the_order_of_columns_changes_nothing(reference_run, tmp_path):
    run = trainer(tmp_path, data=DATA.select_columns(["number", "prompt"]))
    run.train()
    assert largest_difference(weights(run), reference_run[2]) == 0


def test_the_global_generator_has_no_part_in_it(reference_run, tmp_path):
    def unsettling(completion_ids, **kwargs):
        torch.rand(17)
        return many_short_tokens(completion_ids)

    run = trainer(tmp_path, reward=unsettling)
    run.train()
    assert largest_difference(weights(run), reference_run[2]) == 0


def test_another_seed_gives_another_run(reference_run, tmp_path):
    run = trainer(tmp_path, seed=1)
    run.train()
    assert largest_difference(weights(run), reference_run[2]) > 1e-4


def test_whitening_rewards_is_over_the_whole_rollout(tmp_path):
    runs = [trainer(tmp_path / str(n), whiten_rewards=True, per_device_train_batch_size=n,
                    gradient_accumulation_steps=8 // n) for n in (8, 2)]  # fmt: skip
    for run in runs:
        run.train()
    assert largest_difference(*map(weights, runs)) < 1e-6


def half_of_it(folder):
    run = trainer(folder / "run", per_device_train_batch_size=4)
    run.train()
    save_of_two(run, folder)


def test_two_processes_give_the_weights_of_one(tmp_path, reference_run):
    in_two_processes(tmp_path, half_of_it)
    run, _, after = reference_run
    assert largest_difference(torch.load(tmp_path / "weights.pt"), after) < 1e-6
    for one, other in zip(json.loads((tmp_path / "log.json").read_text()), logged(run), strict=True):
        for name in set(GLOSSARY) & set(other):
            assert one[name] == pytest.approx(other[name], abs=1e-5), name
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


# --- The update ---------------------------------------------------------------------------------


def test_max_grad_norm_is_obeyed(tmp_path):
    run = trainer(
        tmp_path, max_grad_norm=0.01, num_ppo_epochs=1, num_mini_batches=1, total_episodes=8,
        lr_scheduler_type="constant", learning_rate=0.5,
    )  # fmt: skip
    before = weights(run)
    run.train()
    after = weights(run)
    moved = math.sqrt(sum(((after[name] - before[name]) ** 2).sum().item() for name in before))
    assert logged(run)[0]["grad_norm"] > 0.1  # the norm before clipping
    assert moved == pytest.approx(0.5 * 0.01, rel=1e-3)  # one SGD step: learning rate x clipped norm


def test_frozen_parameters_stay_and_the_adapters_and_the_critic_move(tmp_path):
    run = trainer(tmp_path, lora_policy())
    before = weights(run)
    run.train()
    after = weights(run)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("lora_" in name or name.startswith("critic") for name in moved)
    assert {"critic.weight", "critic.bias"} <= moved


def test_a_loss_that_is_nan_stops_and_the_weights_stay_as_they_were(tmp_path):
    run = trainer(tmp_path, learning_rate=1e30, lr_scheduler_type="constant", max_grad_norm=0)
    with pytest.raises(FloatingPointError, match="at step [1-9].*learning_rate"):
        run.train()


def test_the_users_arguments_are_not_changed(tmp_path):
    run = trainer(tmp_path)
    assert run.settings.max_steps == -1
    assert run.settings.gradient_accumulation_steps == 1
    assert run.args.max_steps == 8


# --- Rewards ------------------------------------------------------------------------------------


def test_other_columns_and_the_text_reach_the_reward_row_by_row(tmp_path):
    seen = []

    def spy(prompts, completions, completion_ids, number, trainer_state, log_metric, **kwargs):
        seen.extend(zip(number, prompts, completions, completion_ids, strict=True))
        assert set(kwargs) == {"log_extra"}
        log_metric("spied", 3.0)
        return [0.0] * len(number)

    run = trainer(tmp_path, reward=spy)
    run.train()
    assert sorted(number for number, *_ in seen) == list(range(16))
    for number, prompt, text, ids in seen:
        assert prompt == DATA[number]["prompt"]
        assert text == TOKENIZER.decode(ids, skip_special_tokens=True)
        assert TOKENIZER.pad_token_id not in ids or len(ids) == 6
    assert logged(run)[0]["reward/spied"] == 3.0


def test_scores_are_the_weighted_sum_less_the_penalty_for_a_missing_end(tmp_path):
    def one(prompts, **kwargs):
        return [1.0] * len(prompts)

    def half_of_them(number, **kwargs):
        return [2.0 if n % 2 else None for n in number]

    run = trainer(tmp_path, reward=[one, half_of_them], missing_eos_penalty=10.0, total_episodes=8)
    run.train()
    (entry,) = logged(run)
    odd = sum(n % 2 for n in run.rows_of(0))
    unfinished = 8 - entry["rollout/num_eos_tokens"]
    assert entry["objective/scores"] == pytest.approx((8 * 1 + odd * 2 - 10 * unfinished) / 8)
    assert entry["reward/one"] == 1
    assert entry["reward/half_of_them"] == 2  # the mean over the rows that it applies to
    assert entry["rollout/finished"] == entry["rollout/num_eos_tokens"] / 8


def broken(prompts, **kwargs):
    raise ZeroDivisionError("no judge at home")


def too_few(prompts, **kwargs):
    return [1.0]


def not_a_number(prompts, **kwargs):
    return [float("nan")] * len(prompts)


@pytest.mark.parametrize("reward", [broken, too_few, not_a_number])
def test_a_reward_that_fails_stops_the_run_and_is_named(tmp_path, reward):
    run = trainer(tmp_path, reward=reward)
    with pytest.raises(RewardError, match=reward.__name__):
        run.train()
    assert run.state.global_step == 0


# --- Bad input ----------------------------------------------------------------------------------


def test_a_dataset_smaller_than_a_rollout_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(ValueError, match="has 5 prompts, but one rollout takes 8"):
        trainer(tmp_path, data=DATA.select(range(5)))


def test_an_empty_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dataset is empty"):
        trainer(tmp_path, data=DATA.select([]))


def test_a_missing_prompt_column_is_refused_with_those_that_exist(tmp_path):
    with pytest.raises(ValueError, match="column 'prompt'.*'input_ids'.*the dataset has question, number"):
        trainer(tmp_path, data=DATA.rename_column("prompt", "question"))


def test_a_prompt_without_tokens_is_refused_with_its_row(tmp_path):
    with pytest.raises(ValueError, match="Row 2 has a prompt without tokens"):
        trainer(tmp_path, data=Dataset.from_dict({"prompt": ["a", "b", ""] + ["c"] * 13}))


def test_prompt_and_completion_longer_than_the_context_are_refused_with_the_numbers(tmp_path):
    with pytest.raises(ValueError, match=r"longest prompt has \d+ tokens.*length 6.*the 8 tokens"):
        trainer(tmp_path, tiny_policy(max_position_embeddings=8))


def test_a_longer_prompt_loses_its_beginning(tmp_path):
    run = trainer(tmp_path, max_prompt_length=1)
    assert run.prompts["train"].ids == [TOKENIZER(text)["input_ids"][-1:] for text in DATA["prompt"]]


@pytest.mark.parametrize("pad", ["<eos>", None])
def test_padding_with_the_end_of_sequence_is_mended_on_a_copy_and_said(tmp_path, pad, caplog):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = pad
    run = trainer(tmp_path, tokenizer=tokenizer)
    assert tokenizer.pad_token == pad
    assert run.processing_class.pad_token == "<pad>"
    assert "the end of a completion could not be told from padding" in caplog.text


def test_resuming_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


# --- Resume -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
@pytest.mark.parametrize("step", [4, 3, 6])  # between two rollouts; in the middle of the first, and of the second
@pytest.mark.parametrize("kind", [None, lora_policy])
def test_stopped_and_resumed_equals_never_stopped(tmp_path, optim, step, kind):
    def run(**kwargs):
        return trainer(tmp_path, kind() if kind else None, optim=optim, learning_rate=0.01, **kwargs)

    whole = run()
    whole.train()
    stopped = run(kept=[AtStep("should_save", step), AtStep("should_training_stop", step)])
    stopped.train()
    assert stopped.state.global_step == step
    state = torch.load(tmp_path / f"checkpoint-{step}" / "ppo_state.pt", weights_only=True)
    assert (state["rollout"] is not None) == (step % 4 != 0)
    resumed = run()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    assert resumed.roles.critic.weight.any()
    assert largest_difference(weights(resumed), weights(whole)) < 1e-7
    for name, value in logged(whole)[-1].items():
        if name in GLOSSARY:
            assert logged(resumed)[-1][name] == pytest.approx(value, abs=1e-7), name


def test_a_run_killed_by_its_user_resumes_at_the_last_checkpoint(tmp_path, reference_run):
    def impatient(completion_ids, trainer_state, **kwargs):
        if trainer_state.global_step == 4:
            raise KeyboardInterrupt
        return many_short_tokens(completion_ids)

    impatient.__name__ = many_short_tokens.__name__  # a reward of another name would be another run
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, reward=impatient, save_strategy="steps", save_steps=1).train()
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(weights(resumed), reference_run[2]) < 1e-7


def test_a_checkpoint_without_its_state_is_refused_and_not_taken_for_the_last(tmp_path, caplog):
    trainer(tmp_path, kept=[AtStep("should_save", 2, 3), AtStep("should_training_stop", 3)]).train()
    (tmp_path / "checkpoint-3" / "ppo_state.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no ppo_state\.pt.*earlier one"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-3 is not whole: it has no ppo_state.pt; going on from checkpoint-2" in caplog.text
    assert resumed.state.global_step == 8


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    run = trainer(
        tmp_path, eval_dataset=DATA, eval_strategy="steps", save_strategy="steps", eval_steps=1, save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="eval_objective/scores", greater_is_better=True,
    )  # fmt: skip
    run.train()
    best = Path(run.state.best_model_checkpoint)
    saved = trainer(tmp_path / "other")
    saved.roles.load_weights(best)
    assert largest_difference(weights(run), weights(saved)) == 0


# --- Logs and evaluation ------------------------------------------------------------------------


def test_every_logged_name_is_in_the_glossary(reference_run):
    not_asked_for = {"loss/kl_avg", "loss/imitation_avg", "rollout/distinct_1", "rollout/distinct_2"}
    not_asked_for |= {"rollout/length_slope", "rollout/length_correlation"}  # all of these completions are as long
    not_asked_for |= {"rollout/importance", "rollout/importance_capped", "rollout/sampling_kl"}  # the policy drew all
    of_trainer = {"loss", "grad_norm", "learning_rate", "epoch", "step"}
    for entry in logged(reference_run[0]):
        strangers = {n for n in entry if n not in GLOSSARY and not n.startswith(("reward/", "time/"))}
        assert strangers <= of_trainer
        assert not_asked_for | set(entry) >= set(GLOSSARY)  # and every other name of the glossary is logged


def test_the_logged_loss_is_policy_loss_plus_weighted_value_loss(tmp_path):
    run = trainer(tmp_path, num_mini_batches=1, vf_coef=0.3)
    run.train()
    for entry in logged(run):
        parts = entry["loss/policy_avg"] + 0.3 * entry["loss/value_avg"]
        assert entry["loss"] == pytest.approx(parts, abs=1e-6)  # each step is over the same tokens


def test_logging_every_second_rollout_counts_all_episodes(tmp_path):
    run = trainer(tmp_path, logging_steps=2)
    run.train()
    assert [entry["episode"] for entry in logged(run)] == [16]


def test_evaluate_gives_the_names_of_training_with_a_prefix_and_changes_no_weight(tmp_path):
    run = trainer(tmp_path, eval_dataset=DATA.select(range(5)))
    before = weights(run)
    metrics = run.evaluate()
    names = {name.removeprefix("eval_") for name in metrics if name != "epoch"}  # Trainer's own addition
    assert all(f"eval_{name}" in metrics for name in names)
    assert all(name in GLOSSARY or name.startswith("reward/") for name in names)
    assert {"objective/scores", "objective/kl", "rollout/completion_length", "reward/many_short_tokens"} <= names
    assert metrics["eval_objective/scores"] == pytest.approx(metrics["eval_reward/many_short_tokens"], abs=1e-6)
    assert run.evaluate() == metrics  # the same draws each time
    assert largest_difference(before, weights(run)) == 0


def test_evaluation_during_training_comes_every_so_many_rollouts_and_changes_nothing(tmp_path, reference_run):
    run = trainer(tmp_path, eval_dataset=DATA, eval_strategy="steps", eval_steps=1)
    run.train()
    steps = [entry["step"] for entry in run.state.log_history if "eval_objective/scores" in entry]
    assert steps == [4, 8]
    assert largest_difference(weights(run), reference_run[2]) == 0


def test_evaluating_on_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        trainer(tmp_path).evaluate()


def test_saving_gives_policy_tokenizer_and_critic(tmp_path, reference_run):
    reference_run[0].save_model(str(tmp_path / "model"))
    files = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "critic/value_head.safetensors"} <= files
    assert "ppo_state.pt" not in files


# --- Conversations and learning -----------------------------------------------------------------


def test_conversations_go_through_the_chat_template_and_come_back_as_messages(tmp_path):
    tokenizer = tiny_tokenizer(chat_template=True)
    chats = [[{"role": "user", "content": text}] for text in OPENINGS]
    seen = []

    def polite(prompts, completions, **kwargs):
        seen.extend(zip(prompts, completions, strict=True))
        return [float(len(c[0]["content"])) for c in completions]

    run = trainer(tmp_path, tokenizer=tokenizer, reward=polite, data=Dataset.from_dict({"prompt": chats}),
                  total_episodes=8)  # fmt: skip
    run.train()
    assert tokenizer.decode(run.prompts["train"].ids[0]) == "<|user|>The film<|assistant|>"
    assert sorted(p[0]["content"] for p, _ in seen) == sorted(OPENINGS)
    assert all([m["role"] for m in completion] == ["assistant"] for _, completion in seen)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_it_learns_to_write_a_wanted_token(tmp_path, kind):
    # One token in 400. Adapters cannot touch the output layer: they get a larger target, and wider weights there.
    wanted = set(TOKENIZER(" good")["input_ids"]) if kind == "full" else set(range(10, 40))

    def share(completion_ids, **kwargs):
        return [sum(token in wanted for token in ids) / len(ids) for ids in completion_ids]

    spread = 0.02 if kind == "full" else 0.3
    model = tiny_causal_lm(TOKENIZER, hidden_size=32, num_layers=1, initializer_range=spread)
    if kind == "lora":
        targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM"))
    run = trainer(
        tmp_path, model, reward=share, data=Dataset.from_dict({"prompt": OPENINGS * 8}),
        per_device_train_batch_size=64, total_episodes=64 * 40, num_mini_batches=2, num_ppo_epochs=3,
        max_completion_length=8, optim="adamw_torch", learning_rate=1e-2, lr_scheduler_type="constant",
        kl_coef=0.0, vf_coef=0.5,
    )  # fmt: skip
    run.train()
    scores = [entry["objective/scores"] for entry in logged(run)]
    assert scores[0] < 0.15
    assert scores[-1] > 0.8


def test_a_high_price_of_kl_keeps_the_policy_near_the_reference(tmp_path):
    kl = {}
    for coef in (0.0, 1.0):
        run = trainer(
            tmp_path / str(coef), kl_coef=coef, seed=3, per_device_train_batch_size=16, total_episodes=16 * 15,
            optim="adamw_torch", learning_rate=3e-3, lr_scheduler_type="constant",
        )  # fmt: skip
        run.train()
        kl[coef] = sum(entry["objective/kl"] for entry in logged(run)[-4:]) / 4
    assert kl[0.0] > 1
    assert kl[1.0] < 0.7 * kl[0.0]  # 0.85 against 2.6 nats when this was written; SGD leaves it to chance
