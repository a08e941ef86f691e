r"""How near the estimate of memory comes to the peak of a real run, on a CPU.

    python benchmarks/memory.py
    python benchmarks/memory.py --sizes 30M --setups lora qlora --output runs/memory.json

For each size (decoders with random weights, built here) and set-up (full training, LoRA on all layers, LoRA on the
upper third, QLoRA) it writes a model's folder and a YAML, asks `python -m rlhf_recipes.modeling.memory` for the
estimate, and runs PPO for one rollout and two optimizer steps in a process of its own, whose peak it reads.

The peak is that of the resident set from when the models are loaded on: reading files maps them into memory, which the
system takes back where it is needed. Both numbers include Python and the libraries (`process`); the ratio without them
says more of small sizes. The C library is told to give back freed blocks of 64 kB and more at once
(MALLOC_MMAP_THRESHOLD_): by itself glibc keeps what earlier moments of a run have freed, and the peak is then that of
tensors and of memory that nobody uses; `--keeps_freed` measures that. Linux alone, where a process can set its peak
back. Progress goes to stderr; the last line, on stdout, is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

SIZES: dict[str, dict[str, int]] = {
    "30M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6},
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
    "360M": {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15},
}
VOCABULARY = 49152
LORA = {"use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0.0}
SETUPS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": LORA,
    "upper_third": LORA,  # and lora_num_layers, which depends on the size
    "qlora": {**LORA, "load_in_4bit": True, "use_bnb_nested_quant": True},
}
PROMPT, COMPLETION = 48, 32
RUN = {
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_mini_batches": 2, "num_ppo_epochs": 1,
    "total_episodes": 16, "rollout_forward_batch_size": 16, "max_prompt_length": PROMPT,
    "max_completion_length": COMPLETION, "save_strategy": "no", "use_cpu": True, "stop_token": "none",
    "num_sample_generations": 0, "num_completions_to_print": 0,
}  # fmt: skip


def make_model(folder: Path, size: str) -> None:
    """A decoder of a size with random weights and a tokenizer of as many words, in a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{number}": number for number in range(3, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    shape = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_key_value_heads=shape["num_attention_heads"] // 3, tie_word_embeddings=True,
        max_position_embeddings=2048, pad_token_id=0, eos_token_id=1, bos_token_id=None, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def settings_of(folder: Path, size: str, setup: str) -> dict[str, Any]:
    """The YAML of one run."""
    more = {"lora_num_layers": SIZES[size]["num_hidden_layers"] // 3} if setup == "upper_third" else {}
    return {"model_name_or_path": str(folder), **SETUPS[setup], **more, **RUN}


def train(settings: dict[str, Any]) -> dict[str, int]:
    """Run PPO in this process; bytes of the resident set before models are there, with them, and at the peak."""
    import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

    # isort: split
    from datasets import Dataset

    from rlhf_recipes.modeling.loading import ModelArguments, load_policy, load_policy_tokenizer
    from rlhf_recipes.ppo import PPOConfig, PPOTrainer

    fields = ModelArguments.__dataclass_fields__
    of_model = {name: value for name, value in settings.items() if name in fields}
    of_run = {name: value for name, value in settings.items() if name not in fields}
    process = _memory("VmRSS")
    args = ModelArguments(**of_model)
    tokenizer = load_policy_tokenizer(args, padding_side="left")
    policy = load_policy(args, tokenizer=tokenizer)
    rows = [" ".join(f"w{3 + (row * 64 + n) % 1000}" for n in range(PROMPT - row % 16)) for row in range(16)]
    with tempfile.TemporaryDirectory() as out:
        trainer = PPOTrainer(
            PPOConfig(output_dir=out, disable_tqdm=True, **of_run), tokenizer, policy,
            reward_funcs=[by_length], train_dataset=Dataset.from_dict({"prompt": rows}),
        )  # fmt: skip
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what there is now
        loaded = _memory("VmRSS")
        trainer.train()
    return {"process": process, "loaded": loaded, "peak": _memory("VmHWM")}


def by_length(completions: Sequence[str], **kwargs: Any) -> list[float]:
    """A reward that takes no memory."""
    return [float(len(text) % 7) for text in completions]


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def compare(folder: Path, size: str, setup: str, keeps_freed: bool) -> dict[str, Any]:
    """Estimate and measure one run, each in a process of its own."""
    model = folder / size
    if not (model / "config.json").is_file():
        make_model(model, size)
    config = folder / f"{size}_{setup}.yaml"
    config.write_text(yaml.safe_dump(settings_of(model, size, setup)), encoding="utf-8")
    asked = ["-m", "rlhf_recipes.modeling.memory", "--config", str(config), "--recipe", "ppo", "--json"]
    estimated = json.loads(_run(asked, codes=(0, 1)))
    returned = {} if keeps_freed else {"MALLOC_MMAP_THRESHOLD_": "65536"}
    measured = json.loads(_run([__file__, "--train", str(config)], **returned))
    net = [estimated["total"] - estimated["machine"]["process"], measured["peak"] - measured["process"]]
    return {
        "size": size, "setup": setup, "estimate": estimated["total"], "measured": measured["peak"],
        "ratio": round(estimated["total"] / measured["peak"], 3), "ratio_without_process": round(net[0] / net[1], 3),
        "worst": estimated["worst"], "moments": {name: m["all"] for name, m in estimated["moments"].items()},
        "estimated_process": estimated["machine"]["process"], **measured,
    }  # fmt: skip


def _run(arguments: Sequence[str], codes: Sequence[int] = (0,), **env: str) -> str:
    """The last line that a command of this interpreter prints."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, **env}
    )
    if done.returncode not in codes:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--setups", nargs="+", choices=SETUPS, default=list(SETUPS))
    parser.add_argument("--keeps_freed", action="store_true", help="leave glibc as it is, which keeps freed memory")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)  # what this starts in other processes
    args = parser.parse_args(argv)
    if args.train is not None:
        print(json.dumps(train(yaml.safe_load(args.train.read_text(encoding="utf-8")))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            for setup in args.setups:
                rows.append(compare(Path(folder), size, setup, args.keeps_freed))
                found = rows[-1]
                sys.stderr.write(
                    f"{size:5} {setup:12} estimate {found['estimate'] / 1e9:.2f} GB, measured "
                    f"{found['measured'] / 1e9:.2f} GB, ratio {found['ratio']:.2f}, without the process "
                    f"{found['ratio_without_process']:.2f}\n"
                )
    result = {"rows": rows, "worst_ratio": max((row["ratio"] for row in rows), key=lambda r: abs(r - 1))}
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
