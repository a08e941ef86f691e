"""Where PPO meets other libraries: precision, frozen adapters, old names, sets of prompts, half-open answers."""

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlhf_recipes.modeling.roles import ActorCritic, has_fresh_adapters
from rlhf_recipes.ppo import PPOConfig
from tests.ppo.helpers import DATA, TOKENIZER, logged, lora_policy, tiny_policy, trainer
from tests.tiny import tiny_classifier, tiny_tokenizer


def settings(**kwargs):
    return PPOConfig(output_dir="unused", use_cpu=True, **kwargs)


# --- Precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tiny_policy, lora_policy])
def test_in_bfloat16_policy_and_reference_are_rounded_alike(tmp_path, kind):
    run = trainer(tmp_path, kind(), bf16=True, total_episodes=8, num_ppo_epochs=1, num_mini_batches=1)
    run.train()
    assert logged(run)[0]["objective/kl"] == pytest.approx(0, abs=1e-5)  # one model, once while sampling
    assert run.rollout.logprobs[run.rollout.mask.bool()].any()


def test_weights_in_half_precision_are_warned_of_and_a_named_model_is_in_float32(tmp_path, caplog):
    trainer(tmp_path / "half", tiny_policy().to(torch.bfloat16))
    assert "The policy's trained weights are in half precision" in caplog.text
    assert "critic's" not in caplog.text
    trainer(tmp_path / "critic", value_model=tiny_classifier(TOKENIZER, kind="llama").to(torch.bfloat16))
    assert "The critic's trained weights are in half precision" in caplog.text
    tiny_policy().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    run = trainer(tmp_path / "named", str(tmp_path / "model"), model_init_kwargs={"attn_implementation": "eager"})
    assert {p.dtype for p in run.roles.policy.parameters()} == {torch.float32}


# --- Adapters -----------------------------------------------------------------------------------


def test_what_a_user_has_frozen_of_an_adapter_stays_frozen(tmp_path):
    policy = lora_policy()
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    run = trainer(tmp_path, policy, total_episodes=8)
    run.train()
    assert {n for n, p in run.roles.policy.named_parameters() if p.requires_grad} == {
        n for n, _ in run.roles.policy.named_parameters() if "lora_B" in n
    }


def test_with_trained_biases_the_reference_is_a_copy():
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", bias="all")
    policy = get_peft_model(tiny_policy(attention_bias=True), config)
    assert any("bias" in name and p.requires_grad for name, p in policy.named_parameters())
    assert not has_fresh_adapters(policy)
    assert ActorCritic(policy).ref_model is not None


@pytest.mark.parametrize("role", ["model", "ref_model", "reward_model", "value_model", "reward"])
def test_a_module_that_is_no_model_of_transformers_is_refused_by_the_name_of_its_argument(tmp_path, role):
    told = {"reward": "reward_funcs"}.get(role, role)
    with pytest.raises(TypeError, match=rf"^{told} is a Linear, .*AutoModelFor\w+\.from_pretrained loads it"):
        trainer(tmp_path, **{role: torch.nn.Linear(2, 2)})


def test_a_reference_that_cannot_tell_how_likely_a_token_is_is_refused(tmp_path):
    with pytest.raises(TypeError, match="ref_model is a LlamaForSequenceClassification, .*no language-model head"):
        trainer(tmp_path, ref_model=tiny_classifier(TOKENIZER, kind="llama"))


def test_an_encoder_as_reward_model_is_told_where_it_belongs(tmp_path):
    encoder = tiny_classifier(TOKENIZER, kind="bert")
    with pytest.raises(ValueError, match="reward_model is a BertForSequenceClassification.*reward_processing_classes"):
        trainer(tmp_path, reward_model=encoder)


def test_a_reference_may_be_named_by_a_path(tmp_path):
    reference = tiny_policy(seed=5)
    reference.save_pretrained(tmp_path / "reference")
    run = trainer(tmp_path / "run", ref_model=tmp_path / "reference")
    named = run.roles.ref_model.state_dict()
    assert all(torch.equal(tensor, named[name]) for name, tensor in reference.state_dict().items())


def test_a_pad_token_that_only_the_tokenizer_knows_gets_a_row_and_nothing_else_changes(tmp_path):
    policy, tokenizer = tiny_policy(), tiny_tokenizer(padding_side="left")
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == policy.config.vocab_size  # the first id that is beyond the embedding
    run = trainer(tmp_path, policy, tokenizer=tokenizer, total_episodes=8)
    assert run.model.policy is policy
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor[: len(before[name])], before[name])
        assert len(tensor) == len(before[name]) + (name in ("model.embed_tokens.weight", "lm_head.weight"))
    run.train()
    assert any(not torch.equal(p[: len(before[name])], before[name]) for name, p in policy.named_parameters())


def test_a_policy_with_nothing_to_train_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No weight of the policy is trainable"):
        trainer(tmp_path, tiny_policy().requires_grad_(False))


# --- Settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [20, 53, 200])  # 53 is the default
def test_replace_changes_what_also_has_an_old_name(length):
    changed = dataclasses.replace(settings(max_completion_length=100), max_completion_length=length)
    assert (changed.max_completion_length, changed.response_length) == (length, length)


def test_an_old_name_reads_and_writes_the_new_one():
    args = settings(response_length=7)
    args.max_completion_length = 9
    assert args.response_length == 9
    args.response_length = 11
    assert args.max_completion_length == 11


def test_the_best_checkpoint_is_that_of_the_best_score_unless_said_otherwise():
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    args = settings(eval_steps=1, save_steps=1, **best)
    assert (args.metric_for_best_model, args.greater_is_better) == ("objective/scores", True)


def test_a_bound_upwards_without_one_is_refused():
    with pytest.raises(ValueError, match="cliprange_high bounds what cliprange None leaves open"):
        settings(cliprange=None, cliprange_high=0.3)


def test_a_resume_with_other_prompts_of_the_same_number_is_refused(tmp_path):
    run = trainer(tmp_path, save_strategy="steps", save_steps=1)
    run.train()
    other = DATA.map(lambda row: {"prompt": row["prompt"] + " is"})
    with pytest.raises(ValueError, match="prompts: '16 "):
        trainer(tmp_path, data=other).train(resume_from_checkpoint=True)


# --- Several sets of held-out prompts -----------------------------------------------------------


def test_each_set_of_prompts_has_its_figures_and_its_completions(tmp_path, capsys):
    sets = {"short": DATA.select([0, 2]), "long": DATA.select([1, 3])}
    run = trainer(tmp_path, eval_dataset=sets, eval_strategy="steps", eval_steps=2, disable_tqdm=False)
    run.train()
    assert {f.name for f in (tmp_path / "completions").iterdir()} == {
        "step_000008_short.jsonl",
        "step_000008_long.jsonl",
    }
    (entry,) = [entry for entry in run.state.log_history if "eval_short_objective/scores" in entry]
    assert "eval_long_objective/scores" in entry
    said = capsys.readouterr().err
    assert "evaluation short: score" in said
    assert "evaluation long: score" in said


# --- Tensors ------------------------------------------------------------------------------------


def test_the_variance_of_the_ratio_is_not_negative(tmp_path):
    run = trainer(tmp_path, learning_rate=1e-6)
    run.train()
    assert all(entry["policy/ratio_var"] >= 0 for entry in logged(run))
