"""A script for TRL 1.12 runs here with another import and nothing else changed (parity/trl_script.py)."""

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.ppo.parity import overlay
from tests.tiny import SENTENCES, save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

SCRIPT = Path(__file__).parent / "parity" / "trl_script.py"
IMPORT = "from rlhf_recipes import PPOConfig, PPOTrainer"
# Two rollouts of 8 episodes, each gone over four times.
FLAGS = shlex.split(
    "--response_length 8 --local_rollout_forward_batch_size 2 --missing_eos_penalty 1.0 --num_mini_batches 1 "
    "--stop_token eos --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --total_episodes 16 "
    "--learning_rate 1e-3 --num_sample_generations 1 --kl_coef 0.1 --report_to none --use_cpu true --bf16 false"
)
LORA = shlex.split("--use_peft --lora_r 4 --lora_target_modules q_proj v_proj")


def models_and_prompts(path, rows=None):
    """A policy that ends often, a reward model, and prompts; `rows` of embeddings, by default one for each token."""
    tokenizer = tiny_tokenizer()
    policy = tiny_causal_lm(tokenizer, hidden_size=16, initializer_range=0.3)
    reward = tiny_classifier(tokenizer, kind="llama", hidden_size=16)
    for model in (policy, reward):
        model.resize_token_embeddings(rows or len(tokenizer))
    with torch.no_grad():
        policy.lm_head.weight[tokenizer.eos_token_id] *= 3
    tokenizer.pad_token = None  # as many tokenizers come
    save_tiny(path / "policy", policy, tokenizer)
    save_tiny(path / "reward", reward, tokenizer)
    prompts = [{"prompt": " ".join(SENTENCES[n % 6].split()[: 2 + n // 6])} for n in range(20)]
    (path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in prompts))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models_and_prompts(tmp_path_factory.mktemp("script"))


def run(script, folder, output, *flags, **environment):
    names = ["--sft_model_path", folder / "policy", "--reward_model_path", folder / "reward"]
    names += ["--dataset_name", folder / "prompts.jsonl", "--output_dir", output]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    offline |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, script, *names, *FLAGS, *flags],
        capture_output=True, text=True, env={**os.environ, **offline, **environment}, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_only_one_import_of_the_script_is_of_this_project():
    text = SCRIPT.read_text()
    modules = [node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    assert modules.count("rlhf_recipes") == 1
    assert text.count("rlhf_recipes") == text.count(IMPORT) == 1


def test_the_script_trains_saves_and_shows_completions(folder, tmp_path):
    said = run(SCRIPT, folder, tmp_path / "out")
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before = AutoModelForCausalLM.from_pretrained(folder / "policy")
    moved = [not torch.equal(a, b) for a, b in zip(policy.parameters(), before.parameters(), strict=True)]
    assert all(moved)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "[PAD]"
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "critic")
    state = json.loads((tmp_path / "out" / "checkpoint-8" / "trainer_state.json").read_text())
    logs = [entry for entry in state["log_history"] if "objective/scores" in entry]
    assert [entry["episode"] for entry in logs] == [8, 16]
    assert any(entry["rollout/finished"] > 0 for entry in logs)  # so that there was padding behind an end
    assert "completions" in said


@pytest.mark.slow
def test_the_script_trains_adapters(folder, tmp_path):
    run(SCRIPT, folder, tmp_path / "out", *LORA)
    base = AutoModelForCausalLM.from_pretrained(folder / "policy")
    adapted = PeftModel.from_pretrained(base, tmp_path / "out")
    changed = [bool(tensor.any()) for name, tensor in adapted.named_parameters() if "lora_B" in name]
    assert len(changed) == 4
    assert all(changed)


@pytest.mark.slow
def test_it_is_a_script_for_trl(tmp_path):
    """With TRL's own import in place of ours, TRL 1.12 runs it; its models need room for the pad token."""
    folder = models_and_prompts(tmp_path, rows=408)
    theirs = tmp_path / "theirs.py"
    theirs.write_text(SCRIPT.read_text().replace(IMPORT, "from trl.experimental.ppo import PPOConfig, PPOTrainer"))
    run(theirs, folder, tmp_path / "out", PYTHONPATH=str(overlay.find()))
    before = AutoModelForCausalLM.from_pretrained(folder / "policy").state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)
