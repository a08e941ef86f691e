"""Completions of a vLLM server, with a double of it (`double.py`): what is asked, and what is refused."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from rlhf_recipes.modeling.generation import distortions, pad_left
from rlhf_recipes.ppo.vllm.generator import OPTIONS, VLLMGenerator, sampling_of
from rlhf_recipes.ppo.vllm.server import NOTHING, VLLMServer
from tests.ppo.helpers import TOKENIZER, largest_difference, lora_policy, tiny_policy, torchrun, trainer, weights
from tests.ppo.vllm.double import Double, served
from tests.tiny import tiny_tokenizer
from tests.vllm_server import documented

ENDS = [TOKENIZER.eos_token_id]


@pytest.fixture
def no_pauses(monkeypatch):
    async def sleep(seconds):
        pass

    monkeypatch.setattr("asyncio.sleep", sleep)


def moved(policy):
    """A policy whose adapters change something."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.3)
    return policy


def generator_of(url, folder, tokenizer=TOKENIZER, **kwargs):
    return VLLMGenerator(VLLMServer(url, retries=0), folder, tokenizer, **kwargs)


def written(generator, **options):
    config = GenerationConfig(**{"max_new_tokens": 8, "temperature": 0.8, "pad_token_id": 0} | options)
    ids, mask = pad_left([[5, 6, 7], [8], [9, 10]], 0, 3)
    return generator.generate(ids, mask, config, [1, 2, 3])


# --- Training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [lora_policy, tiny_policy])
def test_training_with_a_server_is_training_without_one(tmp_path, policy):
    options = {"learning_rate": 1.0, "total_episodes": 24}
    here = trainer(tmp_path / "here", policy(), **options)
    here.first_update.seen_written = True  # it reads what it has written, as it does with a server
    here.train()
    double = Double()
    with served(double) as url:
        asked = {"generator": "vllm", "vllm_server_base_url": url}
        there = trainer(tmp_path / "there", policy(), **options | asked)
        there.train()
    # Each token counts pi / q, which is 1 but for rounding; a learning rate of 1 makes more of that.
    assert largest_difference(weights(here), weights(there)) < 1e-5
    loads = [path for path in double.asked if "load" in path or path.endswith(("rpc", "cache"))]
    if policy is lora_policy:  # a new adapter for each of the three rollouts, and then the one before goes
        load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
        assert loads == [load, load, unload, load, unload]
        (kept,) = double.adapters
        assert [folder.name for folder in (tmp_path / "there" / "vllm").iterdir()] == [kept]
        assert kept.startswith("rlhf-")
        assert kept.endswith("-3")
    else:
        assert loads == ["/collective_rpc", "/reset_prefix_cache"] * 3
        assert not list((tmp_path / "there" / "vllm").iterdir())


@pytest.mark.slow
def test_two_processes_ask_for_the_same_adapter(tmp_path):
    here = trainer(tmp_path / "here", lora_policy())
    here.train()
    double = Double()
    with served(double) as url:
        done = torchrun("two_processes.py", tmp_path, url)
    assert done.returncode == 0, done.stderr
    assert sum(path == "/v1/load_lora_adapter" for path in double.asked) == 2  # by one process, for each rollout
    assert largest_difference(torch.load(tmp_path / "weights.pt"), weights(here)) < 1e-6


def test_the_log_probabilities_are_those_of_the_policy_that_was_loaded_last(tmp_path):
    policy = lora_policy()
    with served(Double()) as url:
        generator = generator_of(url, tmp_path)
        generator.sync(policy)
        generator.sync(moved(policy))
        made = written(generator)
    ids, mask = pad_left([[5, 6, 7], [8], [9, 10]], 0, 3)
    with torch.no_grad():  # one token after the other, by the plain forward
        for row in range(3):
            text = ids[row][mask[row].bool()].tolist() + made.completion_ids[row].tolist()
            logits = policy.eval()(torch.tensor([text])).logits[0] / 0.8
            start = int(mask[row].sum()) - 1
            for place, token in enumerate(made.completion_ids[row].tolist()):
                expected = logits[start + place].log_softmax(-1)[token]
                assert made.logprobs[row, place] == pytest.approx(float(expected), abs=1e-4)


def test_what_an_interrupted_run_has_left_is_taken_away_and_nothing_of_others(tmp_path):
    double = Double()
    with served(double) as url:
        generator_of(url, tmp_path / "other").sync(lora_policy())
        generator_of(url, tmp_path / "run").sync(lora_policy())
        (tmp_path / "run" / "mine.txt").touch()
        before = set(double.adapters)
        generator_of(url, tmp_path / "run").sync(lora_policy())
    assert len(before & set(double.adapters)) == 1  # the other run's
    assert len(double.adapters) == 2
    assert {file.name.partition("-")[0] for file in (tmp_path / "run").iterdir()} == {"rlhf", "mine.txt"}
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_an_adapter_with_a_name_of_its_own_is_found(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    policy = get_peft_model(tiny_policy(), config, adapter_name="mine")
    with served(Double()) as url:
        generator_of(url, tmp_path).sync(policy)


# --- Sampling -----------------------------------------------------------------------------------


def test_a_row_that_the_server_ends_early_is_continued(tmp_path):
    with served(Double("stops early")) as url:
        generator = generator_of(url, tmp_path)
        generator.sync(lora_policy())
        made = written(generator)
        ended = written(generator, eos_token_id=list(range(3, 400, 2)))
    assert made.completion_ids.shape == (3, 8)  # in requests of 3, 3 and 2 tokens
    assert (made.logprobs < 0).all()
    for row in ended.completion_ids.tolist():
        ids = [token for token in row if token]
        assert [token % 2 for token in ids[:-1]] == [0] * (len(ids) - 1)
        assert len(ids) == 8 or ids[-1] % 2


def test_every_option_is_sent_and_none_is_left_to_the_server():
    said = sampling_of(GenerationConfig(max_new_tokens=8, temperature=0.7, eos_token_id=[2, 5]), seed=3)
    assert said == {
        "temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "max_tokens": 8, "min_tokens": 0, "ignore_eos": True, "stop_token_ids": [2, 5],
        "stop": [], "include_stop_str_in_output": True, "skip_special_tokens": False, "seed": 3,
    }  # fmt: skip
    given = {"top_k": 7, "top_p": 0.5, "repetition_penalty": 1.3, "min_new_tokens": 4, "stop_strings": "the end"}
    said = sampling_of(GenerationConfig(max_new_tokens=8, temperature=1.0, **given), seed=3, done=3)
    assert (said["top_k"], said["top_p"], said["repetition_penalty"], said["stop"]) == (7, 0.5, 1.3, ["the end"])
    assert (said["max_tokens"], said["min_tokens"]) == (5, 1)
    assert set(OPTIONS.values()) <= set(NOTHING)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"typical_p": 0.9}, "no option like 'typical_p 0.9'; it knows top_k, top_p, min_p, repetition_penalty, min_"),
        ({"no_repeat_ngram_size": 3}, "no option like 'no_repeat_ngram_size 3'"),
        ({"min_p": 0.1, "top_p": 0.9}, "min_p and top_p together"),
    ],
)
def test_options_that_vllm_does_not_have_are_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        sampling_of(GenerationConfig(max_new_tokens=8, temperature=1.0, **options), 0)


def test_where_options_change_the_distribution_there_are_no_log_probabilities(tmp_path):
    with served(Double()) as url:
        generator = generator_of(url, tmp_path)
        generator.sync(lora_policy())
        assert distortions(GenerationConfig(top_k=5))
        assert written(generator, top_k=5).logprobs is None


# --- What is refused before anything is loaded --------------------------------------------------


def asks(url, folder, **options):
    return trainer(folder, "/no/such/model", generator="vllm", vllm_server_base_url=url, **options)


def test_a_server_that_is_not_there_is_told_before_the_policy_is_loaded(tmp_path, no_pauses):
    with pytest.raises(ConnectionError, match=r"localhost:1/v1/models failed after 4 attempts: .*Start it \(docs"):
        asks("http://localhost:1", tmp_path)


def test_a_server_with_another_tokenizer_is_told_before_the_policy_is_loaded(tmp_path):
    double = Double()
    double.tokenizer = tiny_tokenizer(vocab_size=300)
    with (
        served(double) as url,
        pytest.raises(ValueError, match=r"has another tokenizer than the policy: of .*it makes \d+ tokens"),
    ):
        asks(url, tmp_path)


def test_an_end_that_the_server_does_not_know_is_another_tokenizer(tmp_path):
    ours = tiny_tokenizer()
    ours.add_special_tokens({"eos_token": "<|done|>"})
    with served(Double()) as url, pytest.raises(ValueError, match=r"another tokenizer than the policy: of '<\|done"):
        generator_of(url, tmp_path, ours)


def test_a_server_that_is_none_of_vllm_is_told(tmp_path):
    with served(Double("/v1/models")) as url, pytest.raises(ValueError, match="vllm_server_base_url must be that of"):
        asks(url, tmp_path)


def test_the_address_may_end_with_v1(tmp_path):
    with served(Double()) as url:
        assert generator_of(url + "/v1", tmp_path).base["id"] == "base"


def test_a_key_is_sent_where_the_environment_has_one_and_named_where_it_is_missing(tmp_path, monkeypatch):
    double = Double()
    monkeypatch.setattr(double, "answer", lambda path, body: (401, {"error": "Unauthorized"}))
    with served(double) as url, pytest.raises(ValueError, match="key into the environment variable VLLM_API_KEY"):
        generator_of(url, tmp_path)


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="generator is 'vlm'; give local or vllm"):
        trainer(tmp_path, generator="vlm")
    with pytest.raises(ValueError, match="vllm_server_base_url is given, but generator is 'local'"):
        trainer(tmp_path, vllm_server_base_url="http://localhost:8000")
    with pytest.raises(ValueError, match="give an address with http"):
        trainer(tmp_path, generator="vllm", vllm_server_base_url="localhost:8000")
    with pytest.raises(ValueError, match="vllm_server_base_url must be that of a vLLM server"):
        trainer(tmp_path, generator="vllm", vllm_server_base_url="http://localhost:port")


# --- What is refused before the first rollout ---------------------------------------------------


def test_texts_that_are_too_long_for_the_server_are_told_with_the_option_to_give(tmp_path):
    double = Double()
    double.max_model_len = 10
    with served(double) as url, pytest.raises(ValueError, match=r"takes 10 tokens for both.*--max-model-len (\d+)"):
        trainer(tmp_path, lora_policy(), generator="vllm", vllm_server_base_url=url)


def test_sampling_options_are_looked_at_before_the_first_rollout(tmp_path):
    with served(Double()) as url:
        asked = {"generator": "vllm", "vllm_server_base_url": url}
        with pytest.raises(ValueError, match="no option like 'no_repeat_ngram_size 2'"):
            trainer(tmp_path, lora_policy(), generation_kwargs={"no_repeat_ngram_size": 2}, **asked)
        with pytest.raises(ValueError, match="min_new_tokens keeps back the end-of-sequence token"):
            trainer(tmp_path, lora_policy(), stop_token="none", min_new_tokens=2, stop_token_id=[9], **asked)


def test_adapters_that_are_no_lora_are_refused(tmp_path):
    from peft import IA3Config

    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    with served(Double()) as url, pytest.raises(ValueError, match="adapters are IA3, and vLLM loads LoRA alone"):
        trainer(tmp_path, tiny_policy(), peft_config=config, generator="vllm", vllm_server_base_url=url)


def test_the_documented_command_has_all_that_the_errors_ask_for():
    environment, options = documented()
    assert environment == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    assert options == ["--enable-lora", "--max-lora-rank", "16", "--logprobs-mode", "processed_logprobs"]


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (["/v1/load_lora_adapter"], "Start the server with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        (["no --enable-lora"], "Start the server with --enable-lora"),
        (["raw"], "Start it with --logprobs-mode processed_logprobs"),
        (["ignores names"], "with the model 'base', and 'rlhf-.*' was asked for"),
        (["/v1/completions"], "v1/completions: it answered 404"),
    ],
)
def test_a_server_that_was_started_otherwise_is_told_what_to_start_it_with(tmp_path, faults, said):
    with served(Double(*faults)) as url:
        generator = generator_of(url, tmp_path)
        with pytest.raises(ValueError, match=said):
            generator.sync(lora_policy())


def test_a_folder_that_the_server_does_not_see_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_recipes.ppo.vllm.generator.save_policy", lambda policy, folder: tmp_path / "elsewhere")
    with served(Double()) as url:
        generator = generator_of(url, tmp_path)
        with pytest.raises(ValueError, match="see the run's folder under the same path"):
            generator.sync(lora_policy())


def test_whole_weights_need_the_development_mode(tmp_path):
    with served(Double("/collective_rpc")) as url:
        generator = generator_of(url, tmp_path)
        with pytest.raises(ValueError, match="Start the server with VLLM_SERVER_DEV_MODE=1"):
            generator.sync(tiny_policy())


def test_a_server_that_forgets_the_adapter_answers_with_nothing_else(tmp_path):
    double = Double()
    with served(double) as url:
        generator = generator_of(url, tmp_path)
        generator.sync(lora_policy())
        double.adapters.clear()  # started anew under the same address
        with pytest.raises(ValueError, match=r"it answered 404 Not Found: The model `rlhf-\w+-1` does not exist"):
            written(generator)
        generator.sync(lora_policy())
        assert written(generator).completion_ids.shape == (3, 8)


@pytest.mark.parametrize(
    "choice",
    [
        {"token_ids": [5]},
        {"token_ids": [], "logprobs": {"token_logprobs": []}},
        {"token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0]}},
        {"token_ids": [5] * 9, "logprobs": {"token_logprobs": [-1.0] * 9}},
        {"token_ids": ["a"], "logprobs": {"token_logprobs": [-1.0]}},
        {"token_ids": [5], "logprobs": {"token_logprobs": [None]}},
        None,
    ],
)
def test_an_answer_that_does_not_fit_is_refused(tmp_path, monkeypatch, choice):
    double = Double()
    with served(double) as url:
        generator = generator_of(url, tmp_path)
        generator.served = "base"
        answer = {"model": "base", "choices": [] if choice is None else [choice]}
        monkeypatch.setattr(double, "completions", lambda body: (200, answer))
        with pytest.raises(ValueError, match="not the ids and log-probabilities of 1 to 8 tokens"):
            written(generator)


# --- The probe ----------------------------------------------------------------------------------


def test_adapters_that_are_loaded_and_not_used_are_noticed(tmp_path):
    with served(Double("ignores adapters")) as url:
        generator = generator_of(url, tmp_path)
        generator.sync(lora_policy())  # fresh: nothing could tell
        with pytest.raises(ValueError, match=r"has loaded the adapter 'rlhf-\w+-2' and answers as the model without"):
            generator.sync(moved(lora_policy()))


def test_weights_that_are_not_taken_over_are_noticed(tmp_path):
    with served(Double("keeps old weights")) as url:
        generator = generator_of(url, tmp_path)
        generator.sync(tiny_policy())
        with pytest.raises(ValueError, match=r"does not answer as the policy does: .* differ by .* nats in the mean"):
            generator.sync(tiny_policy(seed=1))


def test_another_model_is_noticed(tmp_path):
    double = Double()
    double.model = tiny_policy(seed=1).eval()
    with served(double) as url:
        generator = generator_of(url, tmp_path)
        with pytest.raises(ValueError, match=re.escape("start the server with the same model in the same precision")):
            generator.sync(lora_policy())
