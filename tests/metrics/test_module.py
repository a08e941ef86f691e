import json
import subprocess
import sys

import pytest

from rlhf_recipes import metrics
from rlhf_recipes.reward_modeling.evaluation.figures import calibration, rating_errors, win_rate_curve

evaluate = pytest.importorskip("evaluate")

SCORES, RATINGS = [0.1, 0.4, 0.9, 0.6], [0.0, 1.0, 2.0, 0.0]

OFFLINE = """
import json, socket

def refuse(*args, **kwargs):
    raise AssertionError("a connection was asked for")

socket.socket.connect = refuse
socket.getaddrinfo = refuse

import evaluate
from rlhf_recipes import metrics

found = {}
for name in metrics.NAMES:
    module = evaluate.load(str(metrics.path(name)))
    found[name] = module.compute(predictions=[0.1, 0.4, 0.9, 0.6], references=[0, 1, 1, 0])
print(json.dumps(found))
"""


@pytest.fixture
def load(tmp_path):
    def load_into_folder(name, config_name=None):
        return metrics.load(name, config_name, cache_dir=str(tmp_path))

    return load_into_folder


def test_every_module_loads_without_a_network(tmp_path):
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(metrics.NAMES)
    assert found["pairwise_accuracy"]["pairwise_accuracy"] == 0.75  # 0.4 < 0.6 is the one wrong pair of four
    assert found["rating_errors"]["mae"] == pytest.approx((0.1 + 0.6 + 0.1 + 0.6) / 4)
    assert found["calibration"]["brier"] == pytest.approx((0.01 + 0.36 + 0.01 + 0.36) / 4)
    assert found["win_rate"]["win_rate"] == pytest.approx((2 + 0.5) / 3)  # the best beats two and ties with one


def test_pairwise_accuracy_of_ratings(load):
    module = load("pairwise_accuracy")
    found = module.compute(predictions=SCORES, references=RATINGS)
    # Pairs: (1, 0) right, (2, 0) right, (2, 1) right, (1, 0) of the last wrong, (2, 0) of the last right.
    assert (found["pairwise_accuracy"], found["pairs"]) == (0.8, 5)
    assert module.compute(predictions=SCORES, references=RATINGS, min_gap=2.0)["pairs"] == 2
    within = module.compute(predictions=SCORES, references=RATINGS, prompts=["a", "a", "b", "b"])
    assert (within["pairwise_accuracy"], within["pairs"]) == (1.0, 2)
    with pytest.raises(ValueError, match='configuration "pairs"'):
        module.compute(predictions=SCORES, references=RATINGS, subsets=list("aabb"))


def test_pairwise_accuracy_of_pairs(load):
    module = load("pairwise_accuracy", "pairs")
    module.add_batch(predictions=[1.0, 2.0], references=[0.0, 3.0])
    module.add(prediction=1.0, reference=1.0)
    found = module.compute(subsets=["a", "a", "b"], sections={"all": {"a": 1, "b": 1}})
    assert (found["pairwise_accuracy"], found["pairs"], found["score"]) == (0.5, 3, 0.5)
    assert found["subsets"]["b"]["accuracy"] == 0.5
    assert set(module.compute(predictions=[1.0, 2.0], references=[0.0, 3.0])) == {
        "pairwise_accuracy",
        "pairwise_accuracy_ci95",
        "pairs",
    }


def test_modules_give_what_the_functions_give(load):
    errors = load("rating_errors").compute(predictions=SCORES, references=RATINGS)
    assert errors == rating_errors(SCORES, RATINGS)
    sure = load("calibration").compute(predictions=SCORES, references=[1, 1, 1, 0], bins=2, pairs=True)
    assert sure == calibration(SCORES, [1, 1, 1, 0], bins=2, pairs=True)
    wins = load("win_rate").compute(predictions=SCORES, references=RATINGS, max_n=3)
    curve = win_rate_curve(SCORES, RATINGS, max_n=3)
    assert (wins["curve"], wins["win_rate"]) == (curve, curve[2]["win_rate"])


def test_modules_can_be_combined(tmp_path):
    both = evaluate.combine(
        [metrics.load(name, cache_dir=str(tmp_path)) for name in ("pairwise_accuracy", "rating_errors")]
    )
    found = both.compute(predictions=SCORES, references=RATINGS)
    assert found["pairs"] == 5
    assert found["mae"] == pytest.approx((0.1 + 0.6 + 1.1 + 0.6) / 4)


@pytest.mark.parametrize("name", metrics.NAMES)
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([None, 0.5], [0.0, 1.0], "row 0 the first"),
        ([0.5, float("nan")], [0.0, 1.0], "row 1 the first"),
        (["good", "bad"], [0.0, 1.0], "could not convert"),
        ([], [], "no rows"),
        ([0.5], [0.0, 1.0], "[Mm]ismatch"),
    ],
)
def test_columns_that_are_no_numbers_are_refused(load, name, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        load(name).compute(predictions=predictions, references=references)


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="no metric 'accuracy'. There are calibration, pairwise_accuracy"):
        metrics.load("accuracy")
    with pytest.raises(ValueError, match="ratings and pairs, not 'triples'"):
        metrics.load("pairwise_accuracy", "triples")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ImportError, match=r"rlhf_recipes.metrics needs the package 'evaluate'.*\[feedback\]"):
        metrics.load("win_rate")
