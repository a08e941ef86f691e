"""Each kind of critic: read at the right tokens, trained as it should be, saved, resumed, and refused where unfit."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForCausalLM

from rlhf_recipes.modeling.critics import VALUE_HEAD_FILE, ValueHead, build_critic
from tests.architectures import DECODERS, NAMES, each, tiny_model
from tests.ppo.helpers import (
    DATA,
    TOKENIZER,
    AtStep,
    largest_difference,
    logged,
    lora_policy,
    same_log,
    tiny_policy,
    trainer,
    weights,
)
from tests.tiny import save_tiny, tiny_causal_lm, tiny_classifier

KINDS = ["head", "policy", "reward_model", "module", "path", "none"]
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.1)


def scorer(seed=7, **config):
    """A decoder with a scalar head that shares the policy's tokenizer."""
    return tiny_classifier(TOKENIZER, kind="llama", seed=seed, hidden_size=16, initializer_range=0.3, **config)


def with_critic(folder, kind, saved, model=None, **options):
    """A run with a critic of that kind; `saved` is where the named one lies."""
    if kind == "path" and not saved.exists():
        save_tiny(saved, scorer(seed=9), TOKENIZER)
    given = {
        "reward_model": {"critic": "reward_model", "reward_model": scorer()},
        "module": {"value_model": scorer(seed=8)},
        "path": {"critic": str(saved)},
    }.get(kind, {"critic": kind})
    return trainer(folder, model, **given | {"optim": "adamw_torch", "learning_rate": 0.01} | options)


def trained(run):
    return {name for name, parameter in run.roles.named_parameters() if parameter.requires_grad}


# --- What it is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_a_plain_forward_before_each_token_is_chosen(tmp_path, kind):
    run = with_critic(tmp_path / "run", kind, tmp_path / "saved", total_episodes=8, learning_rate=0.05)
    run.train()  # so that no head is at 0 any more
    rows = list(range(8))
    done = run.sample("train", rows, [3 + row for row in rows])
    prompts = [run.prompts["train"].ids[row] for row in rows]
    assert len({len(prompt) for prompt in prompts}) > 1
    critic = run.roles.critic
    for row, prompt in enumerate(prompts):
        length = int(done.mask[row].sum())
        text = torch.tensor([prompt + done.completion_ids[row, :length].tolist()])
        with torch.no_grad():
            if kind == "none":
                expected = torch.zeros(length)
            elif kind == "head":
                states = run.roles.policy.model(text).last_hidden_state[0] @ critic.weight[0] + critic.bias
                expected = states[len(prompt) - 1 : -1]
            else:
                # A classifier reads its head at the last token: one text for each token that was to be chosen.
                cuts = [text[:, : len(prompt) + t] for t in range(length)]
                expected = torch.cat([critic.model(cut).logits[0] for cut in cuts])
        assert kind == "none" or expected.abs().max() > 1e-3
        torch.testing.assert_close(done.values[row, :length], expected, atol=1e-5, rtol=0)


def test_a_copy_of_the_policy_starts_with_values_of_0_and_leaves_the_policy_alone(tmp_path):
    run = with_critic(tmp_path, "policy", None)
    done = run.sample("train", range(8), range(8))
    assert not done.values.any()
    body, copied = run.roles.policy.model.state_dict(), run.roles.critic.model.model.state_dict()
    assert largest_difference(body, copied) == 0
    assert {t.data_ptr() for t in body.values()}.isdisjoint(t.data_ptr() for t in copied.values())


def test_a_copy_of_the_reward_model_learns_and_the_reward_model_does_not(tmp_path):
    reward = scorer()
    before = copy.deepcopy(reward.state_dict())
    run = trainer(tmp_path, reward=None, reward_model=reward, critic="reward_model", learning_rate=0.1)
    critic = copy.deepcopy(run.roles.critic.model.state_dict())
    assert largest_difference(critic, before) == 0
    run.train()
    assert largest_difference(before, reward.state_dict()) == 0
    assert largest_difference(critic, run.roles.critic.model.state_dict()) > 1e-3


def test_a_reward_model_is_read_at_the_last_token_of_prompt_and_completion(tmp_path):
    reward = scorer()
    run = trainer(tmp_path, reward=None, reward_model=reward, total_episodes=8)
    run.train()
    done = run.rollout
    for row in range(8):
        prompt = done.prompt_ids[row][done.prompt_mask[row].bool()]
        text = torch.cat([prompt, done.completion_ids[row][done.mask[row].bool()]])[None]
        with torch.no_grad():
            assert done.scores[row] == pytest.approx(reward(text).logits.item(), abs=1e-5)


def test_a_head_that_the_folder_does_not_have_starts_at_0(tmp_path):
    folder = save_tiny(tmp_path / "language-model", tiny_policy(seed=3), TOKENIZER)
    run = trainer(tmp_path / "run", critic=str(folder))
    assert not run.roles.critic.model.score.weight.any()
    assert largest_difference(run.roles.critic.model.model.state_dict(), tiny_policy(seed=3).model.state_dict()) == 0


# --- Adapters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["policy", "reward_model", "module", "path"])
@pytest.mark.parametrize("how", ["peft_config", "policy with adapters"])
def test_where_the_policy_trains_adapters_so_does_a_critic_of_its_own(tmp_path, kind, how):
    lora = how == "policy with adapters"
    options = {} if lora else {"peft_config": LORA}
    run = with_critic(tmp_path / "run", kind, tmp_path / "saved", lora_policy() if lora else None,
                      total_episodes=8, **options)  # fmt: skip
    own = {name for name in trained(run) if name.startswith("critic.")}
    assert own
    assert all("lora_" in name or ".score." in name for name in own)
    assert any("lora_B" in name for name in own)
    assert any(".score." in name for name in own)
    before = weights(run)
    run.train()
    moved = {name for name, tensor in weights(run).items() if not torch.equal(tensor, before[name])}
    assert moved <= trained(run)
    assert {name for name in own if "lora_B" in name or ".score." in name} <= moved


def test_a_copy_of_a_policy_with_learned_adapters_has_what_they_learned(tmp_path):
    policy = lora_policy()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter += 0.3
    run = trainer(tmp_path, policy, critic="policy")
    ids = torch.tensor([TOKENIZER("The film is")["input_ids"]])
    with torch.no_grad():
        expected = policy.get_base_model().model(ids).last_hidden_state
        bare = run.roles.critic.model.get_base_model().model(ids).last_hidden_state
    torch.testing.assert_close(bare, expected, atol=1e-4, rtol=1e-4)


def test_of_a_reward_model_with_adapters_the_base_stays_frozen(tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS", modules_to_save=["score"])
    reward = get_peft_model(scorer(), config).requires_grad_(False)
    run = trainer(tmp_path, lora_policy(), reward_model=reward, critic="reward_model")
    own = {name for name in trained(run) if name.startswith("critic.")}
    assert own
    assert all("lora_" in name or ".score." in name for name in own)
    assert not any(parameter.requires_grad for parameter in reward.parameters())


# --- Saved, reloaded, resumed -------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_reloaded_it_is_the_same_to_the_bit(tmp_path, kind, lora):
    def run(folder, **options):
        return with_critic(folder, kind, tmp_path / "saved", lora_policy() if lora else None, **options)

    first = run(tmp_path / "run", total_episodes=8)
    fresh = weights(first)
    first.train()
    first.save_model(str(tmp_path / "model"))
    other = run(tmp_path / "other")
    other.roles.load_weights(tmp_path / "model")
    assert largest_difference(weights(first), weights(other)) == 0
    assert largest_difference(fresh, weights(other)) > 0
    assert (tmp_path / "model" / "critic").exists() == (kind != "none")


# The head is in test_trainer.py. Of the others the default run has one whole model and one with adapters.
OTHERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("reward_model", "module", "path", "none")]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["policy", *OTHERS])
def test_stopped_and_resumed_equals_never_stopped(tmp_path, kind, lora):
    def run(folder, **options):
        return with_critic(folder, kind, tmp_path / "saved", lora_policy() if lora else None, **options)

    whole = run(tmp_path / "whole")
    whole.train()
    run(tmp_path / "cut", kept=[AtStep("should_save", 3), AtStep("should_training_stop", 3)]).train()
    resumed = run(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(weights(resumed), weights(whole)) < 1e-7
    same_log(resumed, whole)


def test_adapters_of_another_name_resume_too(tmp_path):
    def policy():
        model = lora_policy()
        model.add_adapter("tuned", LORA)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_A.tuned" in name:
                    parameter.copy_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
        return model

    options = {"model_adapter_name": "tuned", "ref_adapter_name": "default", "critic": "policy"}
    whole = trainer(tmp_path / "whole", policy(), **options)
    assert all(".tuned." in name for name in trained(whole) if name.startswith("policy."))
    before = weights(whole)
    whole.train()
    after = weights(whole)
    moved = {name for name in after if name.startswith("policy.") and not torch.equal(after[name], before[name])}
    assert moved
    assert all(".tuned." in name for name in moved)
    stops = [AtStep("should_save", 3), AtStep("should_training_stop", 3)]
    trainer(tmp_path / "cut", policy(), kept=stops, **options).train()
    resumed = trainer(tmp_path / "cut", policy(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(weights(resumed), weights(whole)) < 1e-7


@pytest.mark.parametrize("kind", ["head", "policy", "policy with adapters"])
def test_the_folder_of_a_critic_is_a_critic_for_another_run(tmp_path, kind):
    """A second run may start with what the first one's critic has learned."""
    base = save_tiny(tmp_path / "base", tiny_policy(), TOKENIZER)
    adapters = {"peft_config": LORA} if "adapters" in kind else {}
    first = trainer(tmp_path / "first", str(base), critic=kind.split()[0], total_episodes=8, **adapters)
    first.train()
    first.save_model()
    second = trainer(tmp_path / "second", str(base), critic=str(tmp_path / "first" / "critic"), **adapters)

    def of_critic(run):
        # Below a head that peft trains lies the one it replaces, which nobody reads.
        states = run.roles.critic.state_dict()
        return {name: tensor for name, tensor in states.items() if "original_module" not in name}

    assert largest_difference(of_critic(first), of_critic(second)) == 0
    learns = [{name for name in trained(run) if name.startswith("critic.")} for run in (first, second)]
    assert learns[0] == learns[1]


def test_a_layer_that_stood_on_another_body_is_refused(tmp_path):
    ValueHead(tiny_policy()).save_pretrained(tmp_path / "head")
    with pytest.raises(ValueError, match=r"states of another model: width 16 there, 32 here\. Give the policy that"):
        build_critic(str(tmp_path / "head"), tiny_causal_lm(TOKENIZER, hidden_size=32))
    with pytest.raises(ValueError, match="num_hidden_layers 2 there, 3 here"):
        build_critic(str(tmp_path / "head"), tiny_policy(num_layers=3))
    with pytest.raises(ValueError, match="model_type llama there, gpt2 here"):
        build_critic(str(tmp_path / "head"), tiny_model("gpt2"))
    file = tmp_path / "head" / VALUE_HEAD_FILE
    save_file(load_file(file), file)  # as 0.1.0 wrote it, without a word about the body
    assert build_critic(str(tmp_path / "head"), tiny_policy(num_layers=3)) is not None
    with pytest.raises(ValueError, match="width 16 there, 32 here"):
        build_critic(str(tmp_path / "head"), tiny_causal_lm(TOKENIZER, hidden_size=32))


def test_adapters_on_a_base_that_is_on_no_disk_are_refused(tmp_path):
    """A copy of a policy with learned adapters has them merged in, and no folder has such a base."""
    base = save_tiny(tmp_path / "base", tiny_policy(), TOKENIZER)
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LORA)
    build_critic("policy", policy).save_pretrained(tmp_path / "fresh")
    with torch.no_grad():
        next(p for name, p in policy.named_parameters() if "lora_B" in name).add_(0.3)
    build_critic("policy", policy).save_pretrained(tmp_path / "learned")
    with pytest.raises(ValueError, match="copy of a policy that is on no disk.*save_merged.*critic 'head'"):
        build_critic(str(tmp_path / "learned"), policy)
    assert build_critic(str(tmp_path / "fresh"), policy) is not None
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="No model at .*base"):
        build_critic(str(tmp_path / "fresh"), policy)


# --- Warm-up ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("head", True),
        ("policy", False),
        pytest.param("head", False, marks=pytest.mark.slow),
        pytest.param("policy", True, marks=pytest.mark.slow),
    ],
)
def test_while_the_critic_warms_up_the_policy_stays_to_the_bit_and_moves_after(tmp_path, kind, lora):
    seen = []

    class Watch(AtStep):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(weights(run))

    texts = DATA.select_columns("prompt").rename_column("prompt", "text")
    demonstrations = {"imitation_coef": 1.0, "imitation_dataset": texts}
    run = with_critic(tmp_path, kind, None, lora_policy() if lora else None, critic_warmup=1, weight_decay=0.1,
                      entropy_coef=0.1, kept=[Watch("")], **demonstrations)  # fmt: skip
    before = weights(run)
    run.train()

    def moved(one, other, part):
        return {name for name in one if name.startswith(part) and not torch.equal(one[name], other[name])}

    assert not moved(before, seen[3], "policy.")  # the first rollout has 4 steps
    assert moved(before, seen[0], "critic.")
    assert moved(seen[3], seen[4], "policy.")


def test_warm_up_gives_the_critic_the_steps_of_a_policy_that_is_never_trained(tmp_path):
    """What the policy would have wanted has no part in the clipped norm of the gradient either."""
    texts = DATA.select_columns("prompt").rename_column("prompt", "text")
    options = {"critic_warmup": 1, "max_grad_norm": 0.05, "total_episodes": 8, "learning_rate": 0.1}
    plain = trainer(tmp_path / "plain", **options)
    busy = trainer(tmp_path / "busy", entropy_coef=3.0, imitation_coef=2.0, imitation_dataset=texts, **options)
    for run in (plain, busy):
        run.train()
    assert plain.roles.critic.weight.abs().max() > 1e-4
    assert largest_difference(weights(plain), weights(busy)) < 1e-7


def test_a_warm_up_of_no_critic_is_refused(tmp_path):
    with pytest.raises(ValueError, match="critic_warmup needs a critic, but critic is 'none'"):
        trainer(tmp_path, critic="none", critic_warmup=1)


# --- Figures ------------------------------------------------------------------------------------


def test_explained_variance_is_in_the_log_and_grows_as_the_critic_learns(tmp_path):
    def of_the_prompt(number, **kwargs):
        return [float(n % 2) for n in number]  # rows n and n + 8 have the same prompt

    run = trainer(tmp_path, reward=of_the_prompt, critic="policy", critic_warmup=20, total_episodes=8 * 15,
                  optim="adamw_torch", kl_coef=0.0, learning_rate=0.01, lr_scheduler_type="constant", vf_coef=1.0,
                  cliprange_value=None)  # fmt: skip
    run.train()
    explained = [entry["value/explained_variance"] for entry in logged(run)]
    assert explained[0] == pytest.approx(0, abs=1e-5)  # values of 0 know not even the mean, which does not count
    assert sum(explained[-3:]) / 3 > 0.3


def test_without_a_critic_nothing_of_it_is_logged(tmp_path):
    run = trainer(tmp_path, critic="none", total_episodes=8)
    run.train()
    assert not any(name.startswith(("value/", "loss/value")) for name in logged(run)[0])


# --- Refused ------------------------------------------------------------------------------------


def test_an_encoder_is_refused_as_critic(tmp_path):
    encoder = tiny_classifier(TOKENIZER, kind="bert")
    with pytest.raises(ValueError, match=r"The critic is a BertForSequenceClassification.*encoder.*still to come"):
        trainer(tmp_path, value_model=encoder)
    save_tiny(tmp_path / "encoder", encoder, TOKENIZER)
    with pytest.raises(ValueError, match="The critic is a BertForSequenceClassification"):
        trainer(tmp_path, lora_policy(), critic=str(tmp_path / "encoder"))


def test_a_critic_with_several_labels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="LlamaForSequenceClassification with 3 labels"):
        trainer(tmp_path, value_model=scorer(num_labels=3))


def test_one_model_as_critic_and_reward_is_refused(tmp_path):
    model = scorer()
    with pytest.raises(ValueError, match="are one object.*critic='reward_model'"):
        trainer(tmp_path, value_model=model, reward_model=model)


def test_a_reward_model_to_copy_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="there is no reward model to copy"):
        trainer(tmp_path, critic="reward_model")


def test_an_adapter_that_the_model_does_not_have_is_named_with_those_it_has(tmp_path):
    with pytest.raises(ValueError, match="model_adapter_name is 'tuned', but the model has the adapters default"):
        trainer(tmp_path, lora_policy(), model_adapter_name="tuned")
    with pytest.raises(ValueError, match="model_adapter_name is 'tuned', but the model has no adapters"):
        trainer(tmp_path, model_adapter_name="tuned")
    run = trainer(tmp_path, peft_config=LORA, model_adapter_name="tuned")
    assert isinstance(run.roles.policy, PeftModel)
    assert run.roles.policy.active_adapter == "tuned"


# Their classifiers read an encoder too, or have a head of another kind.
OTHERWISE = ("bart", "bigbird_pegasus", "ctrl", "mbart", "modernbert-decoder", "mvp", "plbart", "reformer")
COPIED = [name for name in DECODERS if NAMES[name] in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING]
COPIED = [name for name in COPIED if name not in OTHERWISE]
NO_COPY = dict.fromkeys(("cohere", "granite", "mamba", "lfm2"), "no sequence classifier")
NO_COPY |= {"bart": "built otherwise", "modernbert-decoder": "no scalar head"}


@pytest.mark.parametrize("name", NO_COPY)
def test_a_policy_that_cannot_be_copied_into_a_critic_is_told_what_works(name):
    with pytest.raises(ValueError, match=f"critic is 'policy', but .*{NO_COPY[name]}.*Give critic='head'") as refused:
        build_critic("policy", tiny_model(name))
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("name", each(DECODERS, by_default=("gpt2", "llama", "opt", "gemma2")))
def test_a_copy_gives_at_the_last_token_what_the_classifier_gives(name):
    """Or it is refused, with what works."""
    policy = tiny_model(name)
    if name not in COPIED:
        with pytest.raises(ValueError, match="critic is 'policy', but .* Give critic='head'"):
            build_critic("policy", policy)
        return
    critic = build_critic("policy", policy)
    torch.nn.init.normal_(critic.model.score.weight, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(10, 18)[None]
    with torch.no_grad():
        values = critic(ids, torch.ones_like(ids), torch.arange(8)[None])
        said = critic.model(input_ids=ids, use_cache=False).logits
    assert values[0, -1].item() == pytest.approx(said.item(), abs=1e-4)


def test_a_critic_of_such_an_architecture_is_refused_by_its_folder(tmp_path):
    tiny_model("cohere").save_pretrained(tmp_path / "cohere")
    with pytest.raises(ValueError, match="model_type 'cohere'.*Give critic='head'"):
        trainer(tmp_path, critic=str(tmp_path / "cohere"))


# --- As TRL's scripts read it -------------------------------------------------------------------


def test_the_roles_are_read_by_the_names_that_trl_gave_them(tmp_path):
    policy, value_model = tiny_policy(), scorer()
    names = [{name for name, _ in model.named_parameters()} for model in (policy, value_model)]
    run = trainer(tmp_path, policy, value_model=value_model, total_episodes=8, vf_coef=1.0)
    before = {name: parameter.clone() for name, parameter in run.model.value_model.named_parameters()}
    run.train()
    assert {name for name, _ in run.model.policy.named_parameters()} == names[0]
    assert {name for name, _ in run.model.value_model.named_parameters()} == names[1]
    assert any(not torch.equal(p, before[name]) for name, p in run.model.value_model.named_parameters())
    assert trainer(tmp_path / "head").model.value_model.weight.shape == (1, 16)
    assert trainer(tmp_path / "none", critic="none").model.value_model is None


# --- Chunks of logits ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["head", pytest.param("policy", marks=pytest.mark.slow)])
def test_logits_in_chunks_change_nothing(tmp_path, kind):
    runs = []
    for chunk in (2048, 5):
        run = trainer(tmp_path / str(chunk), critic=kind, logits_chunk_size=chunk, entropy_coef=0.05)
        run.train()
        runs.append(run)
    assert largest_difference(*map(weights, runs)) < 1e-6
    same_log(*runs, tolerance=1e-5)
