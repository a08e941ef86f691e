"""`recipes/critic.py`, from the rollouts of a PPO run to the next run, and what it says when something is missing."""

import pytest

from rlhf_recipes.modeling.critics import VALUE_HEAD_FILE
from tests.recipes.tiny_runs import LORA, check_page, flags, load_main, make_place, read

PPO = {
    "total_episodes": 16, "per_device_train_batch_size": 8, "num_ppo_epochs": 1, "max_completion_length": 6,
    "learning_rate": 1e-2, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
}  # fmt: skip
CRITIC = {"num_train_epochs": 20, "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-2, "held_out": 0.4}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"))


OTHERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("head", "policy")]


@pytest.mark.parametrize("kind", ["lora", *OTHERS])  # 5 seconds of the processor: three runs
def test_a_critic_learns_of_one_run_and_begins_the_next(place, kind):
    """The default run has adapters, whose folder says least by itself: base, head and adapters must come together."""
    more, critic = (LORA, "policy") if kind == "lora" else ([], kind)
    model = {"model_name_or_path": place / "policy"}
    ppo = PPO | model | {"dataset_name": place / "prompts", "reward_funcs": f"{place / 'my_rewards.py'}:stars"}
    folders = {name: place / f"{name}-{kind}" for name in ("earlier", "ahead", "next")}
    load_main("ppo")(flags(ppo | {"critic": critic, "save_rollouts": 2, "output_dir": folders["earlier"]}, *more))
    ahead = CRITIC | model | {"rollouts": folders["earlier"], "critic": critic, "output_dir": folders["ahead"]}
    load_main("critic")(flags(ahead, *more))
    metrics = read(folders["ahead"], "metrics.json")
    assert metrics["train_episodes"] + metrics["held_out_episodes"] == 16
    assert metrics["rollouts"] == 2
    assert abs(metrics["policy_distance"]) < 0.3
    history = read(folders["ahead"], "log_history.json")
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert metrics["explained_variance"] == [e for e in history if "eval_loss" in e][-1]["eval_explained_variance"]
    assert (folders["ahead"] / "critic" / VALUE_HEAD_FILE).is_file() == (kind == "head")
    check_page(folders["ahead"], "explained_variance")
    # The next run begins with what was learned: its values are those, and not 0.
    warm = {"critic": folders["ahead"] / "critic", "output_dir": folders["next"], "total_episodes": 8}
    load_main("ppo")(flags(ppo | warm, *more))
    first = next(entry for entry in read(folders["next"], "log_history.json") if "value/mean" in entry)
    last = [entry["eval_mean_value"] for entry in history if "eval_mean_value" in entry][-1]
    assert first["value/mean"] == pytest.approx(last, abs=1.0)
    assert first["value/mean"] > 0.5


def test_a_run_without_rollouts_is_refused_before_a_model_is_loaded(place):
    options = {"rollouts": place / "prompts", "model_name_or_path": place / "no-model", "output_dir": place / "no"}
    with pytest.raises(FileNotFoundError, match="no rollouts in .*prompts.*--save_rollouts N"):
        load_main("critic")(flags(CRITIC | options))


def test_rollouts_must_be_named(place, capsys):
    with pytest.raises(SystemExit):
        load_main("critic")(flags(CRITIC | {"model_name_or_path": place / "policy", "output_dir": place / "no"}))
    assert "rollouts is missing: name the folder of a PPO run" in capsys.readouterr().err
