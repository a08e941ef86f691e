"""The benchmark beside TRL: its arithmetic by hand, its order of runs, and our side at work on a tiny model."""

import argparse
import importlib
import itertools
import json
import sys
from pathlib import Path

import pytest
from transformers import TrainerState

from rlhf_recipes import PPOConfig
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

PROJECT = Path(__file__).parents[2]
TINY = {"batch": 4, "new_tokens": 3, "lora_layers": 1, "rollouts": 2}


@pytest.fixture(scope="module")
def module():
    """Imports a part of the benchmark as the script itself does: its folder comes first on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROJECT / "benchmarks")
        yield importlib.import_module
    for name in [name for name in sys.modules if name == "ppo_vs_trl" or name.split(".")[0] == "beside_trl"]:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder that is policy and dataset."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = tiny_tokenizer()
    save_tiny(folder, tiny_causal_lm(tokenizer, hidden_size=16), tokenizer)
    words = itertools.permutations(("good", "film", "story", "plot", "music"))
    rows = [{"completion": " ".join(row) + " and"} for row in words]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# ---- figures, by hand


def test_ratios_are_of_the_runs_of_one_turn(module):
    ours = [{"seconds": s, "cpu_seconds": 1.0, "peak_mb": m} for s, m in ((1.0, 100), (2.0, 100), (1.0, 300))]
    other = [{"seconds": s, "cpu_seconds": 4.0, "peak_mb": m} for s, m in ((3.0, 400), (4.0, 500), (8.0, 1000))]
    # 3, 2 and 8 times as fast; 0.25, 0.2 and 0.3 of the memory.
    assert module("beside_trl.turns").ratios(ours, other) == {"speed": 3.0, "cpu_speed": 4.0, "memory": 0.25}


def test_a_summary_has_median_least_and_most_and_no_curves(module):
    runs = {"ours": [{"seconds": s, "curve": [[0, 1.0]]} for s in (3.0, 1.0, 2.5)]}
    assert module("beside_trl.turns").summary(runs) == {"ours": {"seconds": [2.5, 1.0, 3.0]}}


@pytest.mark.parametrize(("by_processor", "met"), [(False, True), (True, False)])
def test_a_bar_is_met_by_the_clock_or_by_the_processor(module, by_processor, met):
    judged = module("beside_trl.turns").judged
    found = {"speed": 3.0, "cpu_speed": 2.9, "memory": 0.41}
    assert judged(found, {"speed": 3.0, "memory": 0.4}, by_processor) == {
        "speed": {"bar": 3.0, "met": met},
        "memory": {"bar": 0.4, "met": False},
    }
    assert judged(found, {"speed": 2.5}, by_processor) == {"speed": {"bar": 2.5, "met": True}}


def test_rollouts_that_warm_up_do_not_count(module, monkeypatch):
    common, setups = module("beside_trl.common"), module("beside_trl.setups")
    clock = iter([(0.0, 0.0), (100.0, 100.0), (104.0, 106.0), (110.0, 108.0), (114.0, 116.0), (118.0, 120.0)])
    monkeypatch.setattr(common, "now", lambda: next(clock))
    marks, state = common.Marks(2), TrainerState()
    marks.on_train_begin(None, state, None)
    for rollout in (0, 1):
        marks.rollout_ends()
        marks.scored(1.0)
        for step in (1, 2):  # of which the first ends no rollout
            state.global_step = 2 * rollout + step
            marks.on_step_end(None, state, None)
    # The second rollout goes from (110, 108) to (118, 120), and is collected at (114, 116). Four episodes.
    found = marks.figures(setups.Setup(batch=4, rollouts=1, warmup=1))
    assert found == {
        "seconds": 2.0, "cpu_seconds": 3.0, "score_seconds": 0.25, "sample_seconds": 0.75, "update_seconds": 1.0,
        "rollout_cpu_seconds": 2.0, "update_cpu_seconds": 1.0,
    }  # fmt: skip


def test_the_distance_from_a_straight_line(module):
    off_line = module("beside_trl.growth").off_line
    assert off_line([1, 2, 4], [5.0, 7.0, 11.0]) == pytest.approx(0, abs=1e-9)
    # The nearest line of 1, 4, 9 has the relative distances (1, -8, 9) c, orthogonal to 1/y and x/y, and c = -2/146
    # makes it straight: 1 + c, 4 - 32 c, 9 + 81 c.
    assert off_line([1, 2, 3], [1.0, 4.0, 9.0]) == pytest.approx(18 / 146)


def test_learning_compares_the_last_quarter_by_seed(module):
    learning = module("beside_trl.learning")

    def curve(*scores):
        return [[8 * n, score, 2 * score] for n, score in enumerate(scores)]

    # Ends are means of the last two of eight rollouts: 3 and 5 against 1 and 2.
    ours = [curve(*[0] * 6, 2, 4), curve(*[0] * 6, 5, 5)]
    trl = [curve(*[9] * 6, 1, 1), curve(*[9] * 6, 2, 2)]
    found = learning.compared({"ours": ours, "trl": trl})
    assert (found["score"]["ours"]["mean"], found["score"]["trl"]["mean"]) == (4.0, 1.5)
    assert found["score"]["ours_less_trl"] == pytest.approx(2.5)
    # Differences of 2 and 3: a standard error of 0.5, and Student's quantile for one degree, 12.706.
    assert found["score"]["ours_less_trl_ci95"] == pytest.approx([2.5 - 6.353, 2.5 + 6.353], abs=1e-3)
    assert found["kl"]["ours_less_trl"] == pytest.approx(5.0)
    assert "| score | 4.000 | 1.500 | +2.500 |" in learning.table(found)


# ---- what is run


def test_what_a_setup_cannot_be(module):
    setup = module("beside_trl.setups").Setup
    assert setup(batch=8, micro=4, epochs=3, options={"num_mini_batches": 2}).steps == 6
    with pytest.raises(ValueError, match="8 episodes does not divide into micro-batches of 3"):
        setup(batch=8, micro=3)
    with pytest.raises(ValueError, match="reward is 'praise'; it can be model, adapter, lexicon"):
        setup(reward="praise")


def test_each_lever_is_an_option_that_differs_from_ours(module, tmp_path):
    setups, common = module("beside_trl.setups"), module("beside_trl.common")
    plain = common.ppo_options(setups.Setup(), str(tmp_path))
    config = PPOConfig(**plain)
    for change in setups.LEVERS.values():
        other = PPOConfig(**plain | change)
        assert all(getattr(other, name) != getattr(config, name) for name in change)


def test_prompts_are_five_words_of_one_length_or_so_many_tokens(module, tiny):
    common, setup = module("beside_trl.common"), module("beside_trl.setups").Setup
    tokenizer = common.load_tokenizer(str(tiny))
    five = common.prompts_of(setup(batch=8), tokenizer, str(tiny))
    assert len({tuple(ids) for ids in five}) == 32
    assert len({len(ids) for ids in five}) == 1
    assert {len(tokenizer.decode(ids).split()) for ids in five} == {5}
    long = common.prompts_of(setup(batch=8, prompt_tokens=40), tokenizer, str(tiny))
    assert [len(ids) for ids in long] == [40] * 32
    with pytest.raises(ValueError, match="prompts of one length; a rollout takes 500"):
        common.prompts_of(setup(batch=500), tokenizer, str(tiny))


@pytest.fixture
def started(module, monkeypatch):
    """Every run that would have been started; TRL takes 6 s, and 5 s with 8 at a time, ours 2 s."""
    runs = []

    def start(side, setup, args):
        runs.append((side, setup))
        size = setup.options.get("local_rollout_forward_batch_size")
        seconds = 2.0 if side == "ours" else 5.0 if size == 8 else 6.0
        return {"seconds": seconds, "cpu_seconds": seconds, "peak_mb": 100.0 if side == "ours" else 400.0}

    script = module("ppo_vs_trl")
    for where in (script, module("beside_trl.turns")):
        monkeypatch.setattr(where, "start", start)
    return script, runs


def test_sides_take_turns_and_trl_has_its_fastest_size(started, capsys, tmp_path):
    script, runs = started
    script.main(["--setups", "lora10", "--sides", "ours", "trl", "--output", str(tmp_path / "kept.json")])
    assert [side for side, _ in runs] == ["trl"] * 3 + ["ours", "trl"] * 3
    sizes = [setup.options.get("local_rollout_forward_batch_size") for _, setup in runs]
    assert sizes == [16, 8, 4, None, 8, None, 8, None, 8]
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    report = json.loads(line)
    assert report == json.loads((tmp_path / "kept.json").read_text())
    found = report["setups"]["lora10"]
    assert found["ratios"] == {"trl": {"speed": 2.5, "cpu_speed": 2.5, "memory": 0.25}}
    assert found["bars"] == {"speed": {"bar": 3.0, "met": False}, "memory": {"bar": 0.4, "met": True}}
    assert "| lora10 | trl | 5 | 5 | 0.4 | 2.50 | 2.50 | 0.25 |" in err


def test_each_lever_is_switched_off_alone(started, module, capsys):
    script, runs = started
    script.main(["--levers", "--setups", "full", "--repeats", "1", "--ours", "vf_coef=0.5", "--change", "batch=8"])
    levers = module("beside_trl.setups").LEVERS
    assert [setup.options for _, setup in runs] == [
        {"vf_coef": 0.5},
        *({"vf_coef": 0.5} | off for off in levers.values()),
    ]
    assert {(side, setup.batch, setup.lora_layers) for side, setup in runs} == {("ours", 8, None)}
    assert set(json.loads(capsys.readouterr().out)["setups"]["full"]["ratios"]) == set(levers)


def test_growth_goes_along_one_quantity_at_a_time(started, module):
    growth, setups = module("beside_trl.growth"), module("beside_trl.setups")
    args = argparse.Namespace(axes=["epochs", "roles"], sides=["ours", "grpo"], ours={"vf_coef": 0.5}, repeats=1)
    found = growth.measure(setups.Setup(), args)
    _, runs = started
    epochs = setups.GROWTH["epochs"]
    assert [(side, setup.epochs) for side, setup in runs[: 2 * len(epochs)]] == [
        (side, count) for count in epochs for side in ("ours", "grpo")
    ]
    roles = runs[2 * len(epochs) :]
    assert [side for side, _ in roles] == ["ours"] * len(setups.ROLES)  # others have all roles
    assert (roles[0][1].ours, roles[0][1].options) == ({"critic": "none"}, {"vf_coef": 0.5})
    assert found["epochs"]["fits"] == {"ours": {"memory": 1.0}, "grpo": {"memory": 1.0}}
    assert "| epochs | 2 | grpo | 6 | 6 | 0.4 |" in growth.table(found)


# ---- our side at work


def test_our_side_says_what_each_phase_took(module, tiny):
    turns, setup = module("beside_trl.turns"), module("beside_trl.setups").Setup
    found = turns.work("ours", setup(**TINY), str(tiny), str(tiny))
    phases = [found[f"{phase}_seconds"] for phase in ("sample", "score", "update")]
    assert all(phase > 0 for phase in phases)
    assert sum(phases) == pytest.approx(found["seconds"])
    assert found["rollout_cpu_seconds"] + found["update_cpu_seconds"] == pytest.approx(found["cpu_seconds"])
    assert found["peak_mb"] >= found["loaded_mb"] > 50
    assert [row[0] for row in found["curve"]] == [0, 4, 8]
    assert found["curve"][0][2] == pytest.approx(0, abs=1e-5)  # fresh adapters change nothing


@pytest.mark.slow  # imports TRL twice
def test_the_driver_runs_both_sides(module, tiny, capsys):
    changes = [f"{name}={value}" for name, value in TINY.items()]
    module("ppo_vs_trl").main(
        ["--setups", "lora10", "--sides", "ours", "trl", "--repeats", "1", "--forward", "4", "--threads", "1",
         "--model", str(tiny), "--dataset", str(tiny), "--change", *changes]
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)["setups"]["lora10"]
    assert found["setup"]["batch"] == 4
    assert set(found["runs"]["trl"]) == set(found["runs"]["ours"])
    assert found["ratios"]["trl"]["cpu_speed"] > 0
