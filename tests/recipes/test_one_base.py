"""From a base to a reward adapter on it, to PPO that reads it there, to an evaluation: docs/one_base.md, run."""

import json
import sys

import pytest
import torch
import yaml
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file

from rlhf_recipes.rewards import LearnedReward
from tests.recipes.tiny_runs import adapters, equal, flags, load_main, read, write_rows, write_splits
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

BRISK = {"use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-2, "save_strategy": "no"}
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]}
WORDS = ("dull", "fine", "good", "great")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base with a chat template, and ratings of conversations and prompts that ask for them."""
    folder, tokenizer = tmp_path_factory.mktemp("place"), tiny_tokenizer("llama", chat_template=True)
    save_tiny(folder / "base", tiny_causal_lm(tokenizer, initializer_range=0.2), tokenizer)
    save_tiny(folder / "other", tiny_causal_lm(tokenizer, seed=1), tokenizer)
    asked = [[{"role": "user", "content": f"How was film {row}?"}] for row in range(32)]
    said = [[{"role": "assistant", "content": f"It was {WORDS[row % 4]}."}] for row in range(32)]
    rows = [
        {"prompt": p, "completion": c, "score": n % 4 - 1.5} for n, (p, c) in enumerate(zip(asked, said, strict=True))
    ]
    write_splits(folder / "ratings", rows)
    write_splits(folder / "prompts", [{"prompt": prompt} for prompt in asked[:16]])
    return folder


@pytest.fixture(scope="module")
def reward(place):
    out = place / "reward"
    options = {"dataset_name": place / "ratings", "model_name_or_path": place / "base", "output_dir": out,
               "num_train_epochs": 1, "card": False, "max_length": 64}  # fmt: skip
    load_main("reward")(flags(BRISK | LORA | options))
    return out


def config(place, out, reward, **more):
    rewards = {"reward_funcs": [{"func": str(reward), "args": {"base": "policy"}}]}
    sizes = {"total_episodes": 16, "per_device_train_batch_size": 8, "max_completion_length": 6}
    settings = {"model_name_or_path": place / "base", "dataset_name": place / "prompts", "output_dir": out,
                "critic": "adapter", "num_sample_generations": 0}  # fmt: skip
    given = BRISK | LORA | sizes | rewards | settings | more
    file = out.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({k: str(v) if hasattr(v, "parts") else v for k, v in given.items()}))
    return ["--config", str(file)]


def test_a_reward_adapter_lies_there_with_base_head_and_tokenizer(place, reward):
    saved = json.loads((reward / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(place / "base")
    assert saved["task_type"] == "SEQ_CLS"
    assert any(name.endswith("score.weight") for name in adapters(reward / "adapter"))
    assert {"tokenizer.json", "tokenizer_config.json", "reward_config.json"} <= {
        path.name for path in (reward / "adapter").iterdir()
    }


def test_ppo_reads_it_on_the_policy_s_base_and_so_does_the_evaluation(place, reward, tmp_path):
    out = tmp_path / "ppo"
    load_main("ppo")(config(place, out, reward))
    assert read(out, "metrics.json")["episodes"] == 16
    rows = [json.loads(line) for line in (out / "completions.jsonl").read_text().splitlines()]
    alone = LearnedReward(reward / "adapter")
    answers = [[{"role": "assistant", "content": row["completion"]}] for row in rows]
    for row, score in zip(rows, alone([row["prompt"] for row in rows], answers), strict=True):
        assert row["score"] == pytest.approx(score, abs=1e-4)
    # Saved apart: the policy's adapter, the critic's, and the reward's not a second time.
    assert {path.name for path in out.iterdir() if path.is_dir()} >= {"critic"}
    assert not list(out.rglob("reward_*"))
    assert not any("critic" in name or "score" in name for name in adapters(out))
    critic = AutoPeftModelForSequenceClassification.from_pretrained(out / "critic", num_labels=1)
    assert critic.get_base_model().score.weight.any()

    judged = tmp_path / "evaluation"
    spec = [{"func": str(reward), "args": {"base": "policy"}}]
    file = tmp_path / "evaluate.yaml"
    file.write_text(yaml.safe_dump({"reward_funcs": spec, "model_name_or_path": str(out), "output_dir": str(judged),
                                    "dataset_name": str(place / "prompts"), "max_completion_length": 6}))  # fmt: skip
    load_main("evaluate")(["--config", str(file)])
    assert torch.isfinite(torch.tensor(read(judged, "metrics.json")["score"]))

    # And a run that goes on from both.
    again = tmp_path / "again"
    load_main("ppo")(config(place, again, reward, model_name_or_path=out, critic=str(out / "critic"), use_peft=False))
    first, second = (load_file(folder / "critic" / "adapter_model.safetensors") for folder in (out, again))
    assert first.keys() == second.keys()
    assert not equal(first, second)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_name_or_path": "other"}, "on the base '{place}/base', and the policy's base is '{place}/other'"),
        ({"use_peft": False}, "critic: adapter shares the policy's base, but the policy trains all of its weights"),
        ({"use_peft": False, "load_in_4bit": True}, "load_in_4bit holds the weights in 4 bit, which have no gradient"),
        ({"dtype": "float16"}, "dtype is 'float16' without fp16: small gradients would become 0"),
        ({"fp16": True}, "fp16 on a CPU would be computed without a loss scaler"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_anything_is_loaded(
    place, reward, tmp_path, monkeypatch, capsys, changed, said
):
    def no_loading(*args, **kwargs):
        raise AssertionError("something was loaded")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", no_loading)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", no_loading)
    changed = {k: place / v if k == "model_name_or_path" else v for k, v in changed.items()}
    with pytest.raises((ValueError, SystemExit)) as refused:
        load_main("ppo")(config(place, tmp_path / "run", reward, **changed))
    assert said.format(place=place) in " ".join(f"{refused.value} {capsys.readouterr().err}".split())
    assert not (tmp_path / "run").exists()


def test_quantization_without_bitsandbytes_is_told_before_anything_is_loaded(place, reward, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"load_in_4bit needs the package 'bitsandbytes'.*\[quantization\]"):
        load_main("ppo")(config(place, tmp_path / "run", reward, load_in_4bit=True))
    assert not (tmp_path / "run").exists()


def test_trl_s_trainers_refuse_a_reward_on_the_policy_s_base(place, reward, tmp_path):
    file = write_rows(tmp_path / "rows" / "train.jsonl", [{"prompt": "The film"}] * 4)
    spec = {"reward_funcs": [{"func": str(reward), "args": {"base": "policy"}}]}
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump(spec))
    options = {"model_name_or_path": place / "base", "dataset_name": file, "output_dir": tmp_path / "run"}
    with pytest.raises(ValueError, match="reads the policy's base .*which PPO alone can give it"):
        load_main("grpo")(["--config", str(tmp_path / "grpo.yaml"), *flags(BRISK | {"bf16": False} | options)])
