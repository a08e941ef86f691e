"""Policy, reference, critic and reward model on one base, in whole runs of PPO."""

import copy
import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf_recipes.modeling.loading import ModelArguments, load_policy, load_reward_model
from rlhf_recipes.modeling.memory.roles import memory_of_roles
from rlhf_recipes.ppo import PPOConfig
from rlhf_recipes.ppo.run.bases import check_before_loading
from rlhf_recipes.rewards import LearnedReward, load_rewards
from tests.modeling.test_roles import BATCH, REAL, plain_logprobs
from tests.ppo.helpers import (
    TOKENIZER,
    AtStep,
    largest_difference,
    logged,
    many_short_tokens,
    same_log,
    trainer,
    weights,
)
from tests.tiny import save_tiny, tiny_causal_lm

TEXTS = {"prompts": ["The film", "It was", "two"], "completions": [" good", " a dull script and", ""]}


def arguments(base, **more):
    options = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]}
    return ModelArguments(**{"model_name_or_path": str(base), **options, **more})


def scramble(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, what a fine-tuning left on it, and a reward model on it."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "base", tiny_causal_lm(TOKENIZER, hidden_size=64, initializer_range=0.3), TOKENIZER)
    save_tiny(folder / "other", tiny_causal_lm(TOKENIZER, seed=1, hidden_size=64), TOKENIZER)
    scramble(load_policy(arguments(folder / "base"))).save_pretrained(folder / "tuned")
    reward_args = arguments(folder / "base", lora_r=2, lora_target_modules=["k_proj", "down_proj"], lora_dropout=0.5)
    scramble(load_reward_model(reward_args, TOKENIZER), seed=2).save_pretrained(folder / "reward")
    TOKENIZER.save_pretrained(folder / "reward")
    return folder


def run(place, folder, start="base", critic="adapter", base="policy", **options):
    """AdamW; the policy is new adapters on the base, or goes on with those that were tuned before."""
    torch.manual_seed(0)
    model = load_policy(arguments(place / start))
    reward = LearnedReward(place / "reward", base=base)
    return trainer(
        folder, model, reward=reward, critic=critic, **{"optim": "adamw_torch", "learning_rate": 0.01} | options
    )


@pytest.mark.parametrize("start", ["base", "tuned"])
def test_what_is_not_to_be_trained_stays_and_the_reference_is_what_the_policy_was(place, tmp_path, start):
    ppo = run(place, tmp_path, start)
    roles, reward = ppo.roles, ppo.reward.reward_funcs[0]
    assert roles.ref_model is None  # no role has a base of its own
    learns = {name for name, p in roles.named_parameters() if p.requires_grad}
    assert {name for name in learns if ".default." in name} | {n for n in learns if "critic" in n} == learns
    before, scores = {n: p.detach().clone() for n, p in roles.named_parameters()}, reward(**TEXTS)
    ppo.train()
    after = dict(roles.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved <= learns
    for kind in ("lora_B.default", "lora_B.critic", "critic.score"):
        assert any(kind in name for name in moved)
    assert {name for name, p in roles.named_parameters() if p.requires_grad} == learns
    # trl#1340: the reference is neither moved, nor the model before it.
    kind = AutoModelForCausalLM if start == "base" else AutoPeftModelForCausalLM
    expected = plain_logprobs(kind.from_pretrained(place / start))
    said = roles.reference_logprobs(**BATCH, temperature=1.0)[REAL]
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=0)
    assert (plain_logprobs(roles.policy) - expected).abs().max() > 1e-3
    assert logged(ppo)[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    # The reward is no other either, and in training mode too.
    ppo.model.train()
    assert reward(**TEXTS) == pytest.approx(scores, abs=1e-6)
    assert reward(**TEXTS) == pytest.approx(LearnedReward(place / "reward")(**TEXTS), abs=1e-5)
    assert ppo.model.training


def test_the_run_is_that_of_a_reward_model_with_a_base_of_its_own(place, tmp_path):
    shared, apart = (run(place, tmp_path / base, base=base) for base in ("policy", "own"))
    for ppo in (shared, apart):
        ppo.train()
    same_log(shared, apart, tolerance=1e-5)
    [of_shared, of_apart] = [
        memory_of_roles({"policy": ppo.roles.policy, "reward": ppo.reward.reward_funcs[0].model}, ppo.args)[1].weights
        for ppo in (shared, apart)
    ]
    assert of_shared == 64 * 4  # the head in float32
    assert of_apart > 100 * of_shared


def test_stopped_and_resumed_equals_never_stopped(place, tmp_path):
    whole = run(place, tmp_path / "whole", start="tuned")
    whole.train()
    stops = [AtStep("should_save", 3), AtStep("should_training_stop", 3)]
    run(place, tmp_path / "cut", start="tuned", kept=stops).train()
    resumed = run(place, tmp_path / "cut", start="tuned")
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(weights(resumed), weights(whole)) < 1e-7
    same_log(resumed, whole)


def test_policy_and_critic_are_saved_apart_and_load_anywhere(place, tmp_path):
    ppo = run(place, tmp_path / "run", total_episodes=8)
    ppo.train()
    ppo.save_model()
    out = tmp_path / "run"
    assert not any(path.is_dir() for path in out.iterdir() if path.name != "critic")
    names = load_file(out / "adapter_model.safetensors")
    assert names
    assert not any("critic" in name or "reward" in name or "score" in name for name in names)
    assert len(names) == len([n for n, _ in ppo.roles.named_parameters() if ".default." in n])

    critic = AutoPeftModelForSequenceClassification.from_pretrained(out / "critic", num_labels=1)
    ids = torch.tensor([TOKENIZER("The film is")["input_ids"]])
    with torch.no_grad():
        ours = ppo.roles.critic(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None])[0, -1]
        assert critic(ids).logits.item() == pytest.approx(ours.item(), abs=1e-5)

    second = run(place, tmp_path / "second", critic=str(out / "critic"))
    for name, tensor in second.roles.state_dict().items():
        if ".critic." in name or name.startswith("critic."):
            assert torch.equal(tensor, ppo.roles.state_dict()[name]), name
    learns = [{n for n, p in one.roles.named_parameters() if p.requires_grad} for one in (ppo, second)]
    assert learns[0] == learns[1]


def test_merged_is_the_policy_alone(place, tmp_path):
    ppo = run(place, tmp_path / "run", total_episodes=8, save_merged=True)
    ppo.train()
    ppo.save_model()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(plain_logprobs(merged), plain_logprobs(ppo.roles.policy), atol=1e-4, rtol=0)
    assert (tmp_path / "run" / "critic" / "adapter_model.safetensors").is_file()


def test_while_the_critic_warms_up_the_policy_stays_and_the_critic_moves(place, tmp_path):
    ppo = run(place, tmp_path, critic_warmup=2, weight_decay=0.1)  # both rollouts
    before = weights(ppo)
    ppo.train()
    moved = {name for name, tensor in weights(ppo).items() if not torch.equal(tensor, before[name])}
    assert any("lora_B.critic" in name for name in moved)
    assert all("critic" in name for name in moved)


def test_two_rewards_and_one_inside_another_read_the_same_base(place, tmp_path):
    specs = [{"func": str(place / "reward"), "name": "one", "args": {"base": "policy"}},
             {"func": "Clip", "name": "two", "args": {"low": -1.0, "high": 1.0, "reward": {
                 "func": str(place / "reward"), "name": "inner", "args": {"base": "policy"}}}}]  # fmt: skip
    ppo = trainer(tmp_path, load_policy(arguments(place / "base")), reward=load_rewards(specs), total_episodes=8)
    ppo.train()
    assert {"reward_one", "reward_inner"} <= set(ppo.roles.policy.peft_config)
    said = ppo.reward.reward_funcs[0](**TEXTS)
    assert said == pytest.approx(LearnedReward(place / "reward")(**TEXTS), abs=1e-5)


# --- Refused, and where that can be, before anything is loaded ------------------------------------


def early(place, specs=(), settings=None, **model):
    config = PPOConfig(output_dir="unused", use_cpu=True, **settings or {})
    args = {"model_name_or_path": str(place / "base"), "use_peft": True} | model
    check_before_loading(config, ModelArguments(**args), [many_short_tokens, *specs])


def spec(place, **more):
    return {"func": str(place / "reward"), "args": {"base": "policy", **more}}


def test_what_fits_together_passes(place):
    early(place, [spec(place)], {"critic": "adapter"})
    early(place, [spec(place)], model_name_or_path=str(place / "tuned"), use_peft=False)


def test_a_reward_model_on_another_base_is_refused_with_both_names(place, tmp_path):
    both = rf"{place / 'reward'}.*was trained on the base '{place / 'base'}'.*policy's base is '{place / 'other'}'"
    with pytest.raises(ValueError, match=both):
        early(place, [spec(place)], model_name_or_path=str(place / "other"))
    with pytest.raises(ValueError, match=both):
        trainer(tmp_path, load_policy(arguments(place / "other")), reward=load_rewards([spec(place)]))
    early(place, [{"func": str(place / "reward")}], model_name_or_path=str(place / "other"))  # standing alone it may


def test_a_policy_that_is_trained_whole_shares_nothing(place, tmp_path):
    with pytest.raises(ValueError, match=r"critic: adapter shares the policy's base.*Add use_peft"):
        early(place, settings={"critic": "adapter"}, use_peft=False)
    with pytest.raises(ValueError, match=r"base: policy of the reward 'reward' shares .*Add use_peft"):
        early(place, [spec(place)], use_peft=False)
    with pytest.raises(ValueError, match="critic is 'adapter'.*Give peft_config"):
        trainer(tmp_path, str(place / "base"), critic="adapter")


def test_adapters_named_twice_are_refused(place, tmp_path):
    clipped = {"func": "Clip", "name": "two", "args": {"low": -1.0, "high": 1.0, "reward": spec(place)}}
    twice = [spec(place), clipped]
    with pytest.raises(ValueError, match=r"Two rewards on the policy's base would be one adapter, 'reward_reward'"):
        early(place, twice)
    for names in ({"critic": "adapter", "model_adapter_name": "critic"},
                  {"critic": "adapter", "ref_adapter_name": "critic"},
                  {"ref_adapter_name": "default"},
                  {"model_adapter_name": "tuned", "ref_adapter_name": "tuned"}):  # fmt: skip
        with pytest.raises(ValueError, match="Two roles would be one adapter"):
            PPOConfig(output_dir="unused", use_cpu=True, **names)
    model = load_policy(arguments(place / "base"))
    model.add_adapter("critic", copy.deepcopy(model.peft_config["default"]))
    with pytest.raises(ValueError, match="'critic' on the policy's base, but the policy has one of that name already"):
        trainer(tmp_path, model, critic="adapter")


def test_what_cannot_read_another_base_is_refused(place, tmp_path):
    with pytest.raises(ValueError, match=r"is to read the policy's base.*it is no LoRA adapter.*--use_peft"):
        LearnedReward(place / "base", base="policy")
    with pytest.raises(ValueError, match="leave out device, dtype and load_in_4bit"):
        LearnedReward(place / "reward", base="policy", load_in_4bit=True)
    with pytest.raises(ValueError, match="base of LearnedReward is 'policies'; it must be one of own, policy"):
        LearnedReward(place / "reward", base="policies")
    with pytest.raises(ValueError, match="has a timeout, and so a process of its own"):
        trainer(tmp_path, load_policy(arguments(place / "base")),
                reward=load_rewards([{**spec(place), "timeout": 5}]))  # fmt: skip
    with pytest.raises(ValueError, match="reads the policy's base.*Anywhere else it stands alone: base: own"):
        LearnedReward(place / "reward", base="policy")(**TEXTS)


def test_an_adapter_that_was_built_for_another_model_is_refused(place, tmp_path):
    """Though it names the policy's base."""
    args = ModelArguments(
        model_name_or_path=str(tmp_path / "deep"), use_peft=True, lora_target_modules=["q_proj", "v_proj"]
    )
    save_tiny(tmp_path / "deep", tiny_causal_lm(TOKENIZER, num_layers=3, hidden_size=64), TOKENIZER)
    load_reward_model(args, TOKENIZER).save_pretrained(tmp_path / "judge")
    TOKENIZER.save_pretrained(tmp_path / "judge")
    config = json.loads((tmp_path / "judge" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(place / "base")
    (tmp_path / "judge" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"holds model\.layers\.2.* does not fit the policy's base"):
        trainer(tmp_path / "run", load_policy(arguments(place / "base")),
                reward=LearnedReward(tmp_path / "judge", base="policy"))  # fmt: skip
