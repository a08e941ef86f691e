r"""PPO on one GPU: seconds of each phase, tokens a second, peak memory, and how far its numbers are from a CPU's.

    python benchmarks/gpu.py                                       # all cases that fit a GPU of 140 GB
    python benchmarks/gpu.py --cases 0.5b:full 7b:4bit             # a GPU of 24 GB
    python benchmarks/gpu.py --cases tiny:lora --device cpu        # whether it runs at all

Nothing is downloaded: models of the shapes of Qwen2.5 are built with random weights. A case is a shape and what is
trained: `full` (weights in float32), `lora` (adapters on a base in bfloat16) or `4bit` (adapters on a base that
bitsandbytes quantizes); all compute in bfloat16. Each runs in a process of its own. Progress goes to stderr; the last
line, on stdout, is one JSON object. Without a GPU it says which cases were not run, and exits with 1.
"""

import argparse
import contextlib
import copy
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from tiny_tasks import EmitToken, build_tokenizer, machine

# isort: split
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Qwen2Config

from rlhf_recipes.modeling.loading import ModelArguments, load_policy
from rlhf_recipes.modeling.logprobs import completion_logprobs
from rlhf_recipes.modeling.memory.roles import memory_of_roles
from rlhf_recipes.outputs import peak_memory_gb
from rlhf_recipes.ppo import PPOConfig, PPOTrainer

# hidden_size, intermediate_size, layers, heads, heads of keys and values, words, whether embeddings are tied
SHAPES = {
    "tiny": (64, 128, 2, 4, 2, 512, True),
    "0.5b": (896, 4864, 24, 14, 2, 151_936, True),
    "1.5b": (1536, 8960, 28, 12, 2, 151_936, True),
    "7b": (3584, 18_944, 28, 28, 4, 152_064, False),
}
HOW = ("full", "lora", "4bit")
CASES = ["0.5b:full", "1.5b:full", "1.5b:lora", "7b:lora", "7b:4bit"]
COMPARED = ("tiny", "0.5b")  # what a CPU reads in seconds
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        report = {"benchmark": "gpu", "machine": machine(), "not_run": args.cases}
        print(json.dumps(report | {"reason": f"torch {torch.__version__} sees no GPU here"}))
        return 1
    if args.one:
        with contextlib.redirect_stdout(sys.stderr):
            found = measure(*args.cases[0].split(":"), args)
        print(json.dumps(found))
        return 0
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    settings = {key: value for key, value in vars(args).items() if key not in ("cases", "one")}
    report = {"benchmark": "gpu", "device_name": name, "machine": machine(), "settings": settings}
    report["cases"] = {case: in_a_process(case, argv) for case in args.cases}
    print(json.dumps(report))
    return int(any("failed" in found for found in report["cases"].values()))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="SHAPE:HOW",
                        help=f"{', '.join(SHAPES)} and {', '.join(HOW)}, such as 7b:lora.")  # fmt: skip
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--attention", choices=["sdpa", "flash_attention_2", "eager"], default="sdpa")
    parser.add_argument("--critic", choices=["head", "policy"], default="head")
    parser.add_argument("--rollouts", type=int, default=4, help="The first is not counted: it warms up.")
    parser.add_argument("--episodes", type=int, default=64, help="Of a rollout.")
    parser.add_argument("--micro_batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128, help="Tokens of a prompt.")
    parser.add_argument("--completion", type=int, default=256, help="Tokens of a completion.")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in this process
    args = parser.parse_args(argv)
    for case in args.cases:
        shape, _, how = case.partition(":")
        if shape not in SHAPES or how not in HOW:
            parser.error(f"{case!r} is no case: give a shape ({', '.join(SHAPES)}), a colon, and {', '.join(HOW)}.")
    if args.rollouts < 2 or args.episodes % args.micro_batch:
        parser.error("Give 2 rollouts or more, and episodes that micro_batch divides.")
    return args


def in_a_process(case: str, argv: Sequence[str] | None) -> dict[str, Any]:
    """The figures of a case, or the last line of its error, as where memory does not suffice."""
    given = list(sys.argv[1:] if argv is None else argv)
    command = [sys.executable, __file__, *given, "--cases", case, "--one"]
    done = subprocess.run(command, capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def build(shape: str, dtype: torch.dtype, args: argparse.Namespace) -> Any:
    """A Qwen2 with random weights, on the device."""
    hidden, inner, layers, heads, kv_heads, words, tied = SHAPES[shape]
    config = Qwen2Config(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=words, tie_word_embeddings=tied, max_position_embeddings=4096,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(args.device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=args.attention)


def policy_of(shape: str, how: str, args: argparse.Namespace, folder: str) -> tuple[Any, LoraConfig | None]:
    """The policy, and which adapters the trainer is to put on it."""
    model = build(shape, torch.float32 if how == "full" else torch.bfloat16, args)
    if how != "4bit":
        return model, LoraConfig(**LORA) if how == "lora" else None
    model.save_pretrained(folder)  # bitsandbytes quantizes what it reads
    del model
    torch.cuda.empty_cache()
    settings = ModelArguments(folder, load_in_4bit=True, use_peft=True, lora_r=LORA["r"], dtype="bfloat16",
                              lora_alpha=LORA["lora_alpha"], lora_target_modules=["all-linear"],
                              attn_implementation=args.attention)  # fmt: skip
    return load_policy(settings), None


def measure(shape: str, how: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train, and read the log."""
    tokenizer = build_tokenizer([f"w{number}" for number in range(SHAPES[shape][5] - 4)])
    word = torch.Generator().manual_seed(0)
    prompts = [
        " ".join(f"w{int(number)}" for number in torch.randint(0, 500, (args.prompt,), generator=word))
        for _ in range(args.episodes)
    ]
    with tempfile.TemporaryDirectory() as folder:
        policy, adapters = policy_of(shape, how, args, folder)
        far = distance_from_cpu(policy, args) if shape in COMPARED and how != "4bit" else None
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer = PPOTrainer(
            PPOConfig(
                output_dir=f"{folder}/run", total_episodes=args.rollouts * args.episodes, critic=args.critic,
                per_device_train_batch_size=args.micro_batch, num_ppo_epochs=2, num_mini_batches=2,
                gradient_accumulation_steps=args.episodes // args.micro_batch, stop_token="none",
                max_prompt_length=args.prompt, max_completion_length=args.completion, learning_rate=1e-6, bf16=True,
                use_cpu=args.device == "cpu", save_strategy="no", disable_tqdm=True, hacking_monitor="off",
            ),
            tokenizer, policy, peft_config=adapters, reward_funcs=EmitToken(5),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
        )  # fmt: skip
        trainer.train()
    rollouts = [entry for entry in trainer.state.log_history if "time/sample" in entry][1:]
    phases = ("sample", "score", "update")
    seconds = {phase: statistics.median(entry[f"time/{phase}"] for entry in rollouts) for phase in phases}
    written, read = args.episodes * args.completion, args.episodes * (args.prompt + args.completion)
    return {
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "tokens_per_second": {"sample": round(written / seconds["sample"]),
                              "update": round(2 * read / seconds["update"])},
        "peak_memory_gb": peak_gb(args),
        "estimated_gb": estimated_gb(trainer),
        "nats_from_cpu_float32": far,
    }  # fmt: skip


def peak_gb(args: argparse.Namespace) -> float:
    """Most that tensors took on the GPU; of a CPU, most that the process took."""
    if args.device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e9, 3)
    return peak_memory_gb()["peak_memory_gb"]


def estimated_gb(trainer: PPOTrainer) -> dict[str, float | None]:
    """What is known before the first token, by role: weights, gradients and optimizer states, without activations."""
    roles = trainer.roles
    counted = memory_of_roles({"policy": roles.policy, "critic": roles.critic, "reference": roles.ref_model},
                              trainer.args)  # fmt: skip
    by_role = {part.role: round(part.total / 1e9, 3) for part in counted}
    return by_role | {"before_activations": round(sum(part.total for part in counted) / 1e9, 3)}


@torch.no_grad()
def distance_from_cpu(policy: Any, args: argparse.Namespace) -> float:
    """Mean |difference| of log-probabilities between bfloat16 on the device and float32 on the CPU, in nats."""
    ids = torch.randint(4, 500, (2, 64), generator=torch.Generator().manual_seed(1))
    ones = torch.ones_like(ids)
    halves = (ids[:, :32], ones[:, :32], ids[:, 32:], ones[:, 32:])
    plain = copy.deepcopy(policy).to("cpu", torch.float32).eval()
    expected = completion_logprobs(plain, *halves, 1.0).logprobs
    on_device = [tensor.to(args.device) for tensor in halves]
    with torch.autocast(args.device, torch.bfloat16):
        said = completion_logprobs(policy.eval(), *on_device, 1.0).logprobs
    return round(float((said.float().cpu() - expected).abs().mean()), 5)


if __name__ == "__main__":
    sys.exit(main())
