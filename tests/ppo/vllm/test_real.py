"""PPO with vLLM's own server, on this machine's CPU (`make test-vllm`)."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessorList
from transformers.generation import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rlhf_recipes.modeling.checks.shortcuts import plain_logprobs
from rlhf_recipes.modeling.generation import completion_mask, pad_left
from rlhf_recipes.ppo.vllm.generator import VLLMGenerator, sampling_of
from tests.ppo.helpers import DATA, TOKENIZER, largest_difference, trainer, weights
from tests.tiny import tiny_causal_lm
from tests.vllm_server import need_vllm, vllm_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPTS = [TOKENIZER(text)["input_ids"] for text in (*DATA["prompt"][:4], "Nobody could save a plot as thin as this")]
EVERY_SEVENTH = list(range(2, 400, 7))  # tokens that end a completion, so that many do


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model as vLLM loads it: its kernels want heads of 32."""
    need_vllm()
    folder = tmp_path_factory.mktemp("model")
    heads = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    tiny_causal_lm(TOKENIZER, initializer_range=0.3, **heads).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1"}
    with vllm_server(folder, tmp_path_factory.mktemp("server"), **environment) as server:
        yield server


def whole_policy(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def lora_policy(folder, move=0.0, **config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
        policy = get_peft_model(whole_policy(folder), LoraConfig(**options | config))
        for name, parameter in policy.named_parameters():
            if move and "lora_B" in name:
                parameter.data.normal_(0, move)
    return policy


# --- One server, as it should be ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 20, "top_p": 0.7},
        {"top_k": 5, "min_p": 0.1},
        {"repetition_penalty": 1.7},
        {"min_new_tokens": 4},
    ],
    ids=str,
)
def test_options_mean_what_they_mean_in_transformers(server, folder, tmp_path, options):
    """Each token's log-probability is that of transformers' own processors, from a plain forward."""
    policy = whole_policy(folder)
    generator = VLLMGenerator(server.url, tmp_path, TOKENIZER)
    config = GenerationConfig(max_new_tokens=12, temperature=0.9, eos_token_id=EVERY_SEVENTH, **options)
    requests = [{"prompt": ids, **sampling_of(config, seed)} for seed, ids in enumerate(PROMPTS)]
    generator.sync(policy)
    made = generator.server.complete(generator.served, requests)
    assert made == generator.server.complete(generator.served, requests)  # a seed is a completion
    for ids, completion in zip(PROMPTS, made, strict=True):
        given = {
            "repetition_penalty": lambda value: RepetitionPenaltyLogitsProcessor(value),
            "min_new_tokens": lambda value: MinNewTokensLengthLogitsProcessor(len(ids), value, EVERY_SEVENTH),  # noqa: B023
            "temperature": TemperatureLogitsWarper,
            "top_k": TopKLogitsWarper,
            "top_p": TopPLogitsWarper,
            "min_p": MinPLogitsWarper,
        }
        said = {"temperature": 0.9, **options}
        process = LogitsProcessorList(make(said[name]) for name, make in given.items() if name in said)
        text = torch.tensor([ids + completion.ids])
        with torch.no_grad():
            logits = policy(text).logits[0]
        for place, (token, told) in enumerate(zip(completion.ids, completion.logprobs, strict=True), len(ids)):
            expected = process(text[:, :place], logits[place - 1 : place].clone()).log_softmax(-1)[0, token]
            assert told == pytest.approx(float(expected), abs=1e-4)
        ends = [place for place, token in enumerate(completion.ids) if token in EVERY_SEVENTH]
        assert ends in ([], [len(completion.ids) - 1])  # it is kept, and nothing follows
        assert ends or len(completion.ids) == 12
        assert len(completion.ids) >= options.get("min_new_tokens", 1)


def test_a_stop_string_ends_a_row_where_the_trainer_sees_it(server, folder, tmp_path):
    generator = VLLMGenerator(server.url, tmp_path, TOKENIZER)
    generator.sync(whole_policy(folder))
    config = GenerationConfig(max_new_tokens=24, temperature=1.5, pad_token_id=0, stop_strings=["a", "he"])
    ids, mask = pad_left(PROMPTS * 8, 0, max(map(len, PROMPTS)))
    made = generator.generate(ids, mask, config, range(len(ids)))
    lengths, ended = completion_mask(made.completion_ids, None, config.stop_strings, TOKENIZER)
    assert ended.float().mean() > 0.5
    for row, length, end in zip(made.completion_ids.tolist(), lengths.sum(dim=1).tolist(), ended, strict=True):
        texts = [TOKENIZER.decode(row[:count]) for count in (length - 1, length)]
        assert [any(string in text for string in config.stop_strings) for text in texts] == [False, bool(end)]
        assert end or length == 24


def test_completions_are_distributed_as_those_of_the_policy(server, folder, tmp_path):
    """The first token of 2,000 completions: chi-squared over the likelier tokens, against the exact probabilities."""
    from scipy.stats import chisquare

    policy, count = lora_policy(folder, move=0.2), 2000
    generator = VLLMGenerator(server.url, tmp_path, TOKENIZER)
    generator.sync(policy)
    config = GenerationConfig(max_new_tokens=1, temperature=0.8, pad_token_id=0)
    ids = torch.tensor([PROMPTS[0]] * count)
    drawn = generator.generate(ids, torch.ones_like(ids), config, range(count)).completion_ids[:, 0]
    with torch.no_grad():
        expected = policy(ids[:1]).logits[0, -1].double().div(0.8).softmax(-1) * count
    often = expected >= 10
    seen = torch.bincount(drawn, minlength=len(expected)).double()
    observed = [*seen[often].tolist(), float(seen[~often].sum())]
    wanted = [*expected[often].tolist(), float(expected[~often].sum())]
    assert len(wanted) > 10
    assert chisquare(observed, wanted).pvalue > 1e-4


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 32}, "LoRA rank 32 is greater than max_lora_rank 16.* Start the server with --max-lora-rank 32"),
        ({"use_dora": True}, "vLLM does not yet support DoRA"),
        ({"modules_to_save": ["lm_head"]}, "vLLM only supports modules_to_save being"),
        ({"bias": "all"}, "Adapter bias is not supported"),
    ],
    ids=str,
)
def test_adapters_that_vllm_does_not_take_are_refused_in_its_words(server, folder, tmp_path, config, said):
    generator = VLLMGenerator(server.url, tmp_path, TOKENIZER)
    with pytest.raises(ValueError, match=said):
        generator.sync(lora_policy(folder, **config))


def test_a_folder_that_the_server_does_not_see_is_told(server, tmp_path):
    generator = VLLMGenerator(server.url, tmp_path, TOKENIZER)
    with pytest.raises(ValueError, match="see the run's folder under the same path"):
        generator.server.load_adapter("rlhf-nowhere", tmp_path / "nowhere", rank=4)


def test_adapters_on_the_embedding_and_the_output_layer_are_used(server, folder, tmp_path):
    generator = VLLMGenerator(server.url, tmp_path, TOKENIZER)
    generator.sync(lora_policy(folder, move=0.2, target_modules=["lm_head", "q_proj", "o_proj"]))
    generator.sync(lora_policy(folder, move=0.2, target_modules=["up_proj"], use_rslora=True))


def test_a_policy_that_is_not_the_servers_is_noticed(server, folder, tmp_path):
    generator = VLLMGenerator(server.url, tmp_path, TOKENIZER)
    other = lora_policy(folder)
    for parameter in other.get_base_model().parameters():
        parameter.data.mul_(1.05)
    with pytest.raises(ValueError, match="does not answer as the policy does"):
        generator.sync(other)


def test_a_policy_that_is_trained_as_a_whole_is_loaded_each_time(server, folder, tmp_path):
    policy = whole_policy(folder)
    generator = VLLMGenerator(server.url, tmp_path, TOKENIZER)
    try:
        for _ in range(2):
            for parameter in policy.parameters():
                parameter.data.mul_(1.1)
            generator.sync(policy)  # which compares the two
    finally:
        generator.sync(whole_policy(folder))


# --- A run --------------------------------------------------------------------------------------


class Watched:
    """Notes of each rollout what server and policies say of its tokens; kills a server in one of them."""

    def __init__(self, run, kill=None):
        self.run, self.kill = run, kill
        self.rollouts, self.states = [], []
        self.generate, run.generator.generate = run.generator.generate, self.watched

    def watched(self, ids, mask, config, keys):
        policy = self.run.roles.policy
        if self.kill is not None and len(self.rollouts) == 2:
            self.kill()
        made = self.generate(ids, mask, config, keys)
        lengths, _ = completion_mask(made.completion_ids, config.eos_token_id)
        tokens = {"prompt_ids": ids, "prompt_mask": mask, "completion_ids": made.completion_ids, "mask": lengths}
        told, own = made.logprobs[lengths.bool()], plain_logprobs(policy, tokens, config.temperature)
        now = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
        others = []
        for state in self.states:  # what the policies of the rollouts before say
            policy.load_state_dict(state)
            others.append(plain_logprobs(policy, tokens, config.temperature))
        policy.load_state_dict(now)
        self.states.append(now)
        self.rollouts.append((told, own, others))
        return made


def test_every_rollout_comes_from_its_own_policy_and_a_killed_server_costs_one_rollout(folder, tmp_path):
    def run_of(name, url):
        options = {"learning_rate": 2.0, "total_episodes": 24, "save_strategy": "steps", "save_steps": 1}
        asked = {"generator": "vllm", "vllm_server_base_url": url}
        return trainer(tmp_path / name, lora_policy(folder), temperature=0.8, **options | asked)

    with vllm_server(folder, tmp_path) as first:
        whole = run_of("whole", first.url)
        watched = Watched(whole)
        whole.train()
        assert len(watched.rollouts) == 3
        for told, own, others in watched.rollouts:
            assert (told - own).abs().mean() < 1e-4
            for other in others:
                assert (told - other).abs().mean() > 0.01

        killed = run_of("killed", first.url)
        Watched(killed, kill=first.kill)
        with pytest.raises(ConnectionError, match=r"completions failed after 4 attempts: .*--resume_from_checkpoint"):
            killed.train()

    with vllm_server(folder, tmp_path) as second:
        resumed = run_of("killed", second.url)
        resumed.train(resume_from_checkpoint=True)  # which takes only a checkpoint that is whole
        assert resumed.state.global_step == whole.state.global_step == 12
        assert largest_difference(weights(resumed), weights(whole)) < 1e-4


# --- A server that was started otherwise --------------------------------------------------------


def test_a_server_that_was_started_otherwise_is_told_what_to_start_it_with(folder, tmp_path):
    with vllm_server(folder, tmp_path, options=[], VLLM_ALLOW_RUNTIME_LORA_UPDATING="1") as server:
        generator = VLLMGenerator(server.url, tmp_path / "run", TOKENIZER)
        with pytest.raises(ValueError, match="Start the server with --enable-lora"):
            generator.sync(lora_policy(folder))
        with pytest.raises(ValueError, match="Start the server with VLLM_SERVER_DEV_MODE=1"):
            generator.sync(whole_policy(folder))
