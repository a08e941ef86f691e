"""A made-up run with every file that the report reads, and texts that try to break a page.

python -m tests.report.quickstart.synthetic FOLDER
"""

import json
import math
import random
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

OPENINGS = """The director has made a film that
What I liked about the story is
For two hours the audience
It is hard to imagine a better
Somewhere in the second half the plot
The young actress at the centre of it
As a comedy about growing old, this
Nothing in the trailer prepares you for
The camera lingers on every face as if
If you have read the book, the movie
There are moments in this drama when
By the time the credits roll""".splitlines()
DULL = """takes a long time to say very little and then says it twice.
never quite finds a reason to exist beyond its own poster, and the jokes fall flat
is about a man who walks into a room and forgets why he came
was filmed in the winter of 1998 near the coast with a small crew.
seems to lose interest in its own people
is neither good nor bad, which is the worst thing one can say
drags from one scene to the next without any sense of""".splitlines()
BRIGHT = """is a warm, funny and beautifully acted story that stays with you.
finds real tenderness in ordinary people, and the music is wonderful
is one of the most charming surprises of the year, full of life.
moves with such grace and good humour that I wanted to see it again at once
delivers a moving and thoroughly enjoyable portrait of friendship.
is lovely to look at and even better to listen to""".splitlines()
NASTY = [
    "<script>alert('before')</script> and <b>bold</b> claims </td></tr></table>",
    '"><img src=x onerror=alert(1)> &amp; {{ 7 * 7 }} {% raw %} it goes on',
    "is pure joy 😀🎬👩‍👩‍👧 and a little ümlaut 中文 العربية",
    "Donaudampfschifffahrtsgesellschaftskapitaen" * 6,
    "first line\n\nthird line after an empty one\n\t\tindented words",
    "",
    "   \n ",
    "bell \x07, escape \x1b[31mred\x1b[0m, nul \x00 and right-to-left \u202eoverride",
    "half a pair \ud83d and a noncharacter \ufffe",
    "$\\frac{1}{2}$ costs $5 at https://example.com/<x>?a=1&b=2",
]


def completions(rng: random.Random, shift: float, count: int) -> list[dict[str, Any]]:
    """`count` rows; the larger `shift`, the more of them praise."""
    rows = []
    for index in range(count):
        bright = rng.random() < 0.3 + 0.35 * shift
        text = " " + rng.choice(BRIGHT if bright else DULL)
        if index % 13 == 5:
            text = NASTY[(index // 13 + (3 if shift else 0)) % len(NASTY)]
        score = max(-4.0, min(4.0, rng.gauss(1.5 if bright else -0.6, 0.8)))
        scores = {
            "reward_model": score,
            "judge": max(-4.0, min(4.0, 0.6 * score + rng.gauss(0, 0.6))),
            "vader": max(-1.0, min(1.0, 0.3 * score + rng.gauss(0, 0.25))),
            "plain_prose": None if index % 40 == 7 else 1.0 - 0.5 * (rng.random() < 0.1),
        }
        prompt = f"{OPENINGS[index % len(OPENINGS)]} ({index + 1})"
        finished = text.endswith(".")
        rows.append(
            {"prompt": prompt, "completion": text, "finished": finished, "tokens": len(text.split()) + 4}
            | {"kl": 4.2 * shift * rng.random(), "scores": scores}
        )
    return rows


def mean_score(rows: list[dict[str, Any]], name: str) -> float:
    return fmean(row["scores"][name] for row in rows if row["scores"][name] is not None)


def measured(rows: list[dict[str, Any]], kl: float, distinct: float) -> dict[str, Any]:
    names = ("reward_model", "judge", "vader", "plain_prose")
    return {
        "score": mean_score(rows, "reward_model") + 0.5 * mean_score(rows, "plain_prose"),
        **{f"reward/{name}": mean_score(rows, name) for name in names},
        "kl": kl,
        "distinct_1": 0.6 * distinct,
        "distinct_2": distinct,
        "completion_length": fmean(row["tokens"] for row in rows),
        "finished": fmean(row["finished"] for row in rows),
        "prompts": len(rows),
        "seconds": 31.4,
        "peak_memory_gb": 1.73,
    }


def log_history(rng: random.Random, rollouts: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, rollouts + 1):
        done = step / rollouts
        score = 0.1 + 1.3 * done**0.7 + rng.gauss(0, 0.22)
        kl = 4.4 * done**1.4 + abs(rng.gauss(0, 0.15))
        rows.append(
            {
                "step": step * 4,
                "episode": step * 16,
                "objective/scores": score + 0.45,
                "objective/kl": kl,
                "objective/rlhf_reward": score + 0.45 - 0.05 * kl,
                "objective/entropy": 55 - 20 * done,
                "reward/reward_model": score,
                "reward/plain_prose": 0.9 + rng.gauss(0, 0.03),
                "loss/policy_avg": -0.004 + rng.gauss(0, 0.003),
                "loss/value_avg": 0.4 * math.exp(-3 * done) + abs(rng.gauss(0.08, 0.02)),
                "policy/approxkl_avg": 0.004 + abs(rng.gauss(0, 0.001)),
                "policy/clipfrac_avg": 0.03 + 0.05 * done + abs(rng.gauss(0, 0.01)),
                "policy/entropy_avg": 2.9 - 0.9 * done + rng.gauss(0, 0.05),
                "value/explained_variance": 0.6 * (1 - math.exp(-4 * done)) - 0.1 + rng.gauss(0, 0.05),
                "rollout/completion_length": 19.4 - 0.8 * done + rng.gauss(0, 0.3),
                "rollout/finished": 0.1 + 0.2 * done + abs(rng.gauss(0, 0.03)),
                "time/rollout": 4.1,
                "time/update": 3.3,
                "learning_rate": 1e-4 * (1 - done),
            }
        )
    return [*rows, {"step": rollouts * 4, "train_runtime": 451.2}]


def evaluation(rng: random.Random) -> dict[str, Any]:
    """What is drawn of the reward model, in a world of three kinds of pairs and ten bins of texts."""
    buckets = [{"from": low, "to": low + 1, "accuracy": 0.6 + 0.1 * low, "pairs": 90} for low in range(3)]
    bins = [{"score": x - 4.5, "rating": x - 4.5 + rng.gauss(0, 0.3), "error": 0.2} for x in range(10)]
    accuracy = {"model": 0.8124, "single_rater": 0.8912, "vader": 0.6793, "length": 0.5127, "pairs": 460123}
    margins = {"margin": "difference of the ratings", "model": buckets}
    return {"kind": "ratings", "accuracy": accuracy, "by_margin": margins, "reliability": bins}


REWARD_METRICS = {
    "train_rows": 8427,
    "pairwise_accuracy": 0.8124,
    "pairs": 460123,
    "single_rater_accuracy": 0.8912,
    "vader_accuracy": 0.6793,
    "length_accuracy": 0.5127,
    "pearson": 0.6931,
    "mae": 1.0357,
    "seconds": 141.7,
    "peak_memory_gb": 1.92,
    "model": "starter/minilm-l6",
}
CONFIGS = {
    "reward": "model_name_or_path: starter/minilm-l6\ndataset_name: starter/movie-ratings\nlearning_rate: 2e-5\n",
    "judge": "model_name_or_path: starter/judge-encoder\ndataset_name: starter/movie-ratings\n",
    "ppo": "# 2 cores\nmodel_name_or_path: starter/smollm2-135m-instruct\nkl_coef: 0.05\nreward_funcs:\n"
    "- func: runs/quickstart/reward\n  name: reward_model\n- func: rlhf_recipes.rewards:PlainProse\n  weight: 0.5\n",
}
ENVIRONMENT = {
    "versions": {"torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.0"},
    "python": "3.11.2",
    "platform": "Linux-6.1-x86_64",
    "cpu_count": 2,
    "device": "cpu",
    "seed": 7,
}
COMMANDS = [
    "python -m rlhf_recipes.data.starter",
    "accelerate launch recipes/reward.py --config recipes/configs/quickstart_reward.yaml",
    "accelerate launch recipes/ppo.py --config recipes/configs/quickstart_ppo.yaml",
    "echo '<b>done</b>' && ls",
]


def summary(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    ppo: dict[str, Any] = {"prompts": len(after), "kl": 4.12, "episodes": 960, "seconds": 455.0}
    ppo |= {"distinct2_before": 0.883, "distinct2_after": 0.851, "peak_memory_gb": 2.31}
    for prefix, name in (("", "reward_model"), ("judge_", "judge"), ("vader_", "vader")):
        first, second = mean_score(before, name), mean_score(after, name)
        keys = ("score_before", "score_after") if not prefix else (f"{prefix}before", f"{prefix}after")
        ppo |= dict(zip(keys, (first, second), strict=True))
        gain = second - first
        ppo |= {f"{prefix}gain": gain, f"{prefix}gain_ci95": [gain - 0.31, gain + 0.29]}
    reward_keys = ("pairwise_accuracy", "single_rater_accuracy", "vader_accuracy", "seconds", "peak_memory_gb")
    reward = {key: REWARD_METRICS[key] for key in reward_keys}
    return {"reward_model": reward, "ppo": ppo, "total_seconds": 787.3, "commands": COMMANDS}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(folder: Path, prompts: int = 128, shift: float = 1.0) -> Path:
    """Write a whole run; a negative `shift` makes one that got worse."""
    before = completions(random.Random(1), 0.0, prompts)
    after = completions(random.Random(2), shift, prompts)
    write_json(folder / "metrics.json", summary(before, after))
    write_json(folder / "reward/metrics.json", REWARD_METRICS)
    write_json(folder / "reward/evaluation.json", evaluation(random.Random(3)))
    write_json(folder / "judge/metrics.json", {"pairwise_accuracy": 0.7716, "pairs": 460123, "seconds": 44.2})
    write_json(folder / "ppo/log_history.json", log_history(random.Random(4), 60))
    for side, rows, kl, distinct in (("before", before, 0.0, 0.883), ("after", after, 4.12, 0.851)):
        write_json(folder / side / "metrics.json", measured(rows, kl, distinct))
        write_jsonl(folder / side / "completions.jsonl", rows)
    for part, text in CONFIGS.items():
        (folder / part / "config.yaml").write_text(text, encoding="utf-8")
    write_json(folder / "environment.json", ENVIRONMENT)
    return folder


if __name__ == "__main__":
    write_run(Path(sys.argv[1]))
