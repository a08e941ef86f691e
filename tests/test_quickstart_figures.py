"""What a real `make quickstart` must have reached. Reads its files; run by `make test-slow` after it."""

import json
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlhf_recipes.data.raters.agreement import all_pairs_accuracy

RUN = Path(__file__).parent.parent / "runs" / "quickstart"

pytestmark = pytest.mark.slow


def read_jsonl(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def metrics():
    file = RUN / "metrics.json"
    assert file.is_file(), "run `make quickstart` first"
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def completions():
    return {name: read_jsonl(RUN / name / "completions.jsonl") for name in ("before", "after")}


def test_reward_model_orders_pairs_as_people_do(metrics):
    reward = metrics["reward_model"]
    assert reward["pairwise_accuracy"] >= 0.80
    assert reward["vader_accuracy"] < reward["pairwise_accuracy"] < reward["single_rater_accuracy"]


def test_accuracy_can_be_found_again_from_the_predictions(metrics):
    rows = [row for row in read_jsonl(RUN / "reward" / "predictions.jsonl") if row["split"] == "test"]
    accuracy, pairs = all_pairs_accuracy([r["logit"] for r in rows], [r["rating"] for r in rows], 0.5)
    assert pairs > 400_000
    assert accuracy == pytest.approx(metrics["reward_model"]["pairwise_accuracy"], abs=1e-6)


def test_ppo_gains_and_the_judge_agrees(metrics):
    ppo = metrics["ppo"]
    assert ppo["prompts"] >= 128
    assert ppo["gain"] >= 0.8
    assert ppo["gain_ci95"][0] > 0.4
    assert ppo["judge_gain_ci95"][0] > 0


def test_ppo_stays_near_the_reference_and_varied(metrics):
    ppo = metrics["ppo"]
    assert 0 < ppo["kl"] <= 10
    assert ppo["distinct2_after"] >= 0.8 * ppo["distinct2_before"]


def test_gain_can_be_found_again_from_the_completions(metrics, completions):
    old, new = completions["before"], completions["after"]
    assert [row["prompt"] for row in old] == [row["prompt"] for row in new]
    gains = [b["scores"]["reward_model"] - a["scores"]["reward_model"] for a, b in zip(old, new, strict=True)]
    assert statistics.fmean(gains) == pytest.approx(metrics["ppo"]["gain"], abs=1e-9)


def test_held_out_prompts_are_no_openings_of_training_sentences(completions):
    train = read_jsonl(RUN.parent.parent / "starter" / "movie-ratings" / "train.jsonl")
    test = {
        " ".join(r["completion"].split()[:5])
        for r in read_jsonl(RUN.parent.parent / "starter/movie-ratings/test.jsonl")
    }
    assert all(row["prompt"] in test for row in completions["after"])
    texts = {row["completion"] for row in train}
    assert not any(row["prompt"] + row["completion"] in texts for row in completions["after"])


def test_memory_stays_below_four_gigabytes(metrics):
    assert metrics["peak_memory_gb"] <= 4.0


def test_report_loads_nothing_from_elsewhere():
    class Links(HTMLParser):
        found: list = []

        def handle_starttag(self, tag, attrs):
            self.found += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith(("#", "data:"))]

    parser = Links()
    parser.feed((RUN / "report.html").read_text(encoding="utf-8"))
    assert parser.found == []
