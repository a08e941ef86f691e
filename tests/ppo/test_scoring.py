"""From completions to scores: when rewards begin, what they are given, and what is logged of them."""

import asyncio
import math

import numpy as np
import pytest
import torch

from rlhf_recipes.ppo import rollout as rollouts
from rlhf_recipes.ppo import trainer as trainer_module
from rlhf_recipes.rewards import SelfBLEU, WeightedSum, WeightSchedule
from tests.ppo.helpers import DATA, logged, many_short_tokens, trainer


def length_of_each(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def test_rewards_that_wait_begin_before_the_models_read(tmp_path, monkeypatch):
    seen = []

    class Startable:
        __name__ = "startable"

        def start(self, completions, **kwargs):
            seen.append("start")
            return lambda: seen.append("finish") or [1.0] * len(completions)

        def __call__(self, **batch):
            return self.start(**batch)()

    def reading(*args, **kwargs):
        seen.append("read")
        return rollouts.read(*args, **kwargs)

    monkeypatch.setattr(trainer_module, "read", reading)
    run = trainer(tmp_path, reward=[Startable(), lambda completions, **kwargs: [0.0] * len(completions)])
    run.train()
    assert seen == ["start", "read", "finish"] * 2


def test_a_coroutine_trains_as_the_same_function_does(tmp_path):
    async def in_background(completion_ids, **kwargs):
        await asyncio.sleep(0.001)
        return many_short_tokens(completion_ids)

    in_background.__name__ = "many_short_tokens"
    one = trainer(tmp_path / "a", reward=in_background)
    other = trainer(tmp_path / "b")
    one.train()
    other.train()
    for name, tensor in one.roles.state_dict().items():
        assert torch.equal(tensor, other.roles.state_dict()[name])
    assert all(entry["time/reward/many_short_tokens"] > 0 for entry in logged(one))


def test_log_probabilities_of_the_reference_reach_the_reward_that_wants_them(tmp_path):
    given = []

    def fluency(completion_ids, ref_logprobs, **kwargs):
        given.append((completion_ids, ref_logprobs))
        return [sum(row) / len(row) for row in ref_logprobs]

    fluency.wants_ref_logprobs = True
    run = trainer(tmp_path, reward=fluency, total_episodes=8)
    rollout = run.collect(0)
    (ids, logprobs) = given[0]
    assert [len(row) for row in ids] == [len(row) for row in logprobs]
    for row, own in enumerate(logprobs):
        assert own == rollout.ref_logprobs[row, : len(own)].tolist()
        assert rollout.scores[row].item() == pytest.approx(np.mean(own), rel=1e-6)


def test_a_weight_follows_the_run(tmp_path):
    schedule = WeightSchedule(0.0, 2.0)
    run = trainer(tmp_path, reward=WeightedSum([length_of_each], [schedule]), total_episodes=32)  # 4 rollouts
    run.train()
    for number, entry in enumerate(logged(run)):
        expected = 2.0 * number / 4 * entry["reward/length_of_each"]
        assert entry["objective/scores"] == pytest.approx(expected, rel=1e-6)


def test_each_reward_is_logged_with_its_spread_and_share(tmp_path):
    def number_of_row(number, **kwargs):
        return [float(n) if n % 2 else None for n in number]

    run = trainer(tmp_path, reward=WeightedSum([many_short_tokens, number_of_row], [1.0, 0.5]))
    run.train()
    for entry in logged(run):
        shares = [entry[f"reward/{name}/share"] for name in ("many_short_tokens", "number_of_row")]
        assert sum(shares) == pytest.approx(1.0)
        assert entry["reward/number_of_row/std"] > 0
    # On the first rollout: rows 0..15 in an order of their own, eight of them; odd ones alone have the second reward.
    taken = [run.prompts["train"].dataset[row]["number"] for row in run.rows_of(0)]
    odd = [n for n in taken if n % 2]
    assert logged(run)[0]["reward/number_of_row"] == pytest.approx(np.mean(odd))
    assert logged(run)[0]["reward/number_of_row/std"] == pytest.approx(np.std(odd))


def test_normalized_rewards_are_in_units_of_their_spread_so_far(tmp_path):
    def number_of_row(number, **kwargs):
        return [1000.0 + 10 * n for n in number]

    reward = WeightedSum([number_of_row], [3.0])
    run = trainer(tmp_path, reward=reward, normalize_rewards=True, total_episodes=16)
    first, second = ([1000.0 + 10 * run.prompts["train"].dataset[r]["number"] for r in run.rows_of(i)] for i in (0, 1))
    rollout = run.collect(0)
    expected = 3 * (np.array(first) - np.mean(first)) / np.std(first, ddof=1)
    assert rollout.scores.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    rollout = run.collect(1)
    seen = first + second
    expected = 3 * (np.array(second) - np.mean(seen)) / np.std(seen, ddof=1)
    assert rollout.scores.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    state = run.credit.state_dict()["reward_moments"]["number_of_row"]
    assert (state["count"], state["mean"]) == (16, pytest.approx(np.mean(seen)))


def test_evaluation_does_not_move_the_running_statistics(tmp_path):
    run = trainer(tmp_path, normalize_rewards=True, eval_dataset=DATA)
    run.collect(0)
    before = run.credit.state_dict()
    run.evaluate()
    assert run.credit.state_dict() == before


def test_a_reward_that_is_the_same_for_all_is_refused(tmp_path):
    def parameters(completions, **kwargs):
        return [5.0] * len(completions)

    parameters.constant = True
    with pytest.raises(ValueError, match="'parameters' is the same for all completions.*factor of a Product"):
        trainer(tmp_path, reward=WeightedSum([many_short_tokens, parameters], [1.0, -0.1]))
    watched = trainer(tmp_path, reward=WeightedSum([many_short_tokens, parameters], [1.0, 0.0]), total_episodes=8)
    watched.train()
    assert logged(watched)[0]["reward/parameters"] == 5.0
    assert math.isclose(logged(watched)[0]["reward/parameters/share"], 0.0)


def test_rewards_that_all_compare_completions_are_refused_where_there_is_one(tmp_path):
    with pytest.raises(ValueError, match="num_generations is 1"):
        trainer(tmp_path, reward=[SelfBLEU()])
    with pytest.raises(ValueError, match="an evaluation writes one for each prompt.*weight 0 is enough"):
        trainer(tmp_path, reward=[SelfBLEU()], num_generations=2, eval_dataset=DATA)
    watched = WeightedSum([SelfBLEU(), many_short_tokens], [1.0, 0.0])
    run = trainer(tmp_path, reward=watched, num_generations=2, eval_dataset=DATA.select(range(8)), total_episodes=8)
    run.train()
    assert "eval_reward/SelfBLEU" not in run.evaluate()
    assert "reward/SelfBLEU" in logged(run)[0]


def test_a_reward_cannot_have_the_name_of_a_column_of_the_table(tmp_path):
    def kl(completions, **kwargs):
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match="A reward is named 'kl', as a column of the table"):
        trainer(tmp_path, reward=[kl])


def test_an_interrupt_after_the_statistics_have_learned_takes_it_back(tmp_path, monkeypatch):
    run = trainer(tmp_path, normalize_rewards=True)
    run.collect(0)
    before = run.credit.state_dict()

    def interrupted(rollout, pad_token_id, world):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer_module, "gathered", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.collect(1)
    assert run.credit.state_dict() == before


def test_numbers_of_numpy_may_go_into_the_table(tmp_path):
    def noted(completions, log_extra, **kwargs):
        log_extra("note", [np.float32(0.5)] * len(completions))
        return [0.0] * len(completions)

    run = trainer(tmp_path, reward=[noted], eval_dataset=DATA)
    run.evaluate()
    assert '"note": 0.5' in (tmp_path / "completions/step_000000.jsonl").read_text()
