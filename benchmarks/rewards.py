"""What each reward costs: CPU seconds for 1,000 completions, and its share of a PPO step at the quickstart's size.

    OMP_NUM_THREADS=1 python benchmarks/rewards.py [--rows 1000] [--step_seconds 28 --episodes 64]

CPU seconds, because they say the same on a busy machine as on an idle one; on one core they are seconds.

Completions are endings of film-review sentences of the starter kit, four for each opening, each with the true ending
as reference. Rewards that need a model use those of the starter kit and of the quickstart; where one is missing, what
needs it is left out and said so. Without --step_seconds the step is that of runs/quickstart/ppo/log_history.json.
Prints a table on stderr and one JSON line.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import rlhf_recipes  # noqa: F401 - first, because it sets threads and telemetry before a library reads them

# isort: split
from transformers import AutoTokenizer

from rlhf_recipes.data.loading import load_rows
from rlhf_recipes.rewards import load_rewards

POLICY, ENCODER, REWARD = "starter/smollm2-135m-instruct", "starter/minilm-l6", "runs/quickstart/reward"
SCHEMA = {"type": "object", "required": ["title"]}
# By what they need besides text.
REWARDS = {
    "nothing": [
        "BLEU", "ChrF", {"func": "ROUGE", "args": {"variant": "rougeL"}}, "ExactMatch", "TokenF1",
        "DistinctN", "SelfBLEU", "NgramNovelty",
        {"func": "RegexMatch", "args": {"pattern": r"\bgreat\b"}}, {"func": "LengthWindow", "args": {"maximum": 20}},
        "EndsWithSentence", "PlainProse", "Repetition", {"func": "JsonSchema", "args": {"schema": SCHEMA}},
        {"func": "KeywordCoverage", "args": {"keywords": ["film", "story"]}}, "Language",
        {"func": "NumberAnswer", "args": {"column": "answer"}}, "ThinkAnswerFormat",
        {"func": "OnText", "args": {"func": len}, "name": "OnText"}, "Vader", "Spelling", "TokenCount",
    ],
    POLICY: [
        {"func": "Flops", "args": {"model": POLICY}}, {"func": "Fluency", "args": {"model": POLICY}},
        {"func": "Acceptability", "args": {"model": POLICY}},
    ],
    ENCODER: [
        {"func": "EmbeddingSimilarity", "args": {"model": ENCODER}},
        {"func": "EmbeddingDistance", "args": {"model": ENCODER}},
    ],
    REWARD: [{"func": REWARD, "name": "LearnedReward"}],
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000, help="Completions that each reward is timed on.")
    parser.add_argument("--model_rows", type=int, default=200, help="The same, of rewards that need a model.")
    parser.add_argument("--step_seconds", type=float, help="Seconds of one rollout with its updates.")
    parser.add_argument("--episodes", type=int, default=64, help="Completions in a rollout.")
    parser.add_argument("--repeats", type=int, default=3, help="Each reward's time is the least of so many.")
    args = parser.parse_args(argv)
    step = args.step_seconds or quickstart_step()
    seconds, shares = {}, {}
    for needed, specs in REWARDS.items():
        rows = args.rows if needed == "nothing" else min(args.rows, args.model_rows)
        batch = completions(rows)
        if needed != "nothing" and not Path(needed).exists():
            print(f"{needed} is not there; left out: {specs}", file=sys.stderr)
            continue
        for spec in specs:
            reward = load_rewards([spec])
            name, func = reward.names[0], reward.reward_funcs[0]
            given = dict(batch) if getattr(func, "wants_prompt_ids", False) else without(batch, "prompt_ids")
            small = {key: value[:8] for key, value in given.items()}
            func(**small)  # what is loaded at first use is no cost of a completion
            took = min(timed(func, given) for _ in range(args.repeats if needed == "nothing" else 1))
            seconds[name] = round(took * 1000 / rows, 4)
            if step:
                shares[name] = round(took / rows * args.episodes / step, 4)
            share = f"{shares[name]:8.2%}" if step else ""
            print(f"{name:24} {seconds[name]:9.3f} s for 1,000 {share}", file=sys.stderr)
    print(json.dumps({"rows": args.rows, "step_seconds": step, "seconds_per_1000": seconds, "share_of_step": shares}))


def completions(rows: int) -> dict[str, list]:
    """Four endings for each opening of five words: its own, and those of three other sentences."""
    texts = [text for text in load_rows("starter/movie-ratings", "test")["completion"] if len(text.split()) > 8]
    draw = random.Random(0)
    prompts, endings, references = [], [], []
    while len(prompts) < rows:
        words = draw.choice(texts).split(" ")
        own = " " + " ".join(words[5:])
        others = [" " + " ".join(draw.choice(texts).split(" ")[5:]) for _ in range(3)]
        prompts += [" ".join(words[:5])] * 4
        endings += [own, *others]
        references += [own] * 4
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    ids = [tokenizer(text).input_ids[:20] for text in endings[:rows]]  # 20 tokens, as in the quickstart
    return {
        "prompts": prompts[:rows],
        "completions": tokenizer.batch_decode(ids),
        "completion_ids": ids,
        "prompt_ids": [tokenizer(prompt).input_ids for prompt in prompts[:rows]],
        "reference": references[:rows],
        "answer": ["7"] * rows,
    }


def without(batch: dict[str, list], key: str) -> dict[str, list]:
    return {name: values for name, values in batch.items() if name != key}


def timed(func: object, batch: dict[str, list]) -> float:
    start = time.process_time()
    func(**batch)  # type: ignore[operator]
    return time.process_time() - start


def quickstart_step() -> float | None:
    """Mean seconds of a rollout and its updates in the quickstart's run; `None` where it was not run."""
    path = Path("runs/quickstart/ppo/log_history.json")
    if not path.is_file():
        return None
    entries = [entry for entry in json.loads(path.read_text()) if "time/update" in entry]
    times = [entry["time/sample"] + entry["time/score"] + entry["time/update"] for entry in entries]
    return round(sum(times) / len(times), 2)


if __name__ == "__main__":
    main()
