"""What a reward does with its lists stays with it, and what it returns is a number that a trainer can compute with."""

import copy
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from rlhf_recipes.rewards import (
    Clip,
    Discount,
    EnsembleReward,
    Gate,
    Map,
    Otherwise,
    Product,
    Relative,
    RewardError,
    Scale,
    WeightedSum,
    compute_rewards,
    load_reward,
)
from rlhf_recipes.rewards.contract.checks import LARGEST, own_batch
from rlhf_recipes.rewards.loading import RewardArguments
from rlhf_recipes.rewards.server import score_rows
from tests.ppo.helpers import DATA, largest_difference, many_short_tokens, trainer, weights


def batch():
    """Two rows of a conversation, with columns of every kind that a dataset has."""
    return {
        "prompts": [[{"role": "user", "content": "Well?"}], [{"role": "user", "content": [{"text": "So?"}]}]],
        "completions": [[{"role": "assistant", "content": "Good."}], [{"role": "assistant", "content": "Bad!"}]],
        "completion_ids": [[5, 6, 7], [8, 9]],
        "answer": ["a", "b"],
        "votes": [{"ann": [1, 2]}, {"bob": [3]}],
        "references": [["x", "y"], ("z", ["w"])],
        "array": [np.arange(3.0), np.zeros(2)],
        "tensor": [torch.arange(3), torch.zeros(2)],
        "image": [Image.new("RGB", (4, 4)), Image.new("RGB", (2, 2))],
    }


def as_plain(rows):
    """The same, in values that can be compared."""
    pictures = [(image.size, image.tobytes()) for image in rows["image"]]
    arrays = [[value.tolist() for value in rows[name]] for name in ("array", "tensor")]
    rest = {name: values for name, values in rows.items() if name not in ("image", "array", "tensor")}
    return copy.deepcopy((rest, arrays, pictures))


MUTATIONS = {
    "other completions": lambda rows: rows["completions"].__setitem__(slice(None), ["bad"] * 2),
    "no prompts": lambda rows: rows["prompts"].clear(),
    "fewer ids": lambda rows: [ids.pop() for ids in rows["completion_ids"]],
    "other ids": lambda rows: rows["completion_ids"].__setitem__(0, []),
    "another message": lambda rows: rows["completions"][0][0].update(content="Changed."),
    "another block": lambda rows: rows["prompts"][1][0]["content"][0].update(text="Changed."),
    "one message more": lambda rows: rows["prompts"][0].append({"role": "user", "content": "?"}),
    "a column": lambda rows: rows["answer"].reverse(),
    "inside a mapping": lambda rows: rows["votes"][0]["ann"].append(9),
    "inside a tuple": lambda rows: rows["references"][1][1].clear(),
    "an array": lambda rows: rows["array"][0].fill(9),
    "a tensor": lambda rows: rows["tensor"][0].zero_(),
    "an image": lambda rows: rows["image"][0].thumbnail((1, 1)),
}


def vandal(mutate):
    """A reward that changes what it is given."""

    def change(**rows):
        mutate(rows)
        return [0.5, 0.25]

    async def later(**rows):
        mutate(rows)
        return [0.5, 0.25]

    return change, later


HOLDERS = {
    "itself": lambda reward: reward,
    "WeightedSum": lambda reward: WeightedSum([reward]),
    "Clip": lambda reward: Clip(reward, high=1.0),
    "Scale": lambda reward: Scale(reward, scale=2.0),
    "Map": lambda reward: Map(reward),
    "Otherwise": lambda reward: Otherwise(reward, value=0.0),
    "Relative": lambda reward: Relative(reward),
    "Product": lambda reward: Product([reward, load_reward("EndsWithSentence")]),
    "Gate": lambda reward: Gate("EndsWithSentence", only_if=reward),
    "Discount": lambda reward: Discount(reward, scale=2.0),
    "EnsembleReward": lambda reward: EnsembleReward([reward, "EndsWithSentence"]),
    "named": lambda reward: load_reward(reward, name="named"),
}


@pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS)
@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("kind", [0, 1], ids=["plain", "async"])
def test_no_reward_sees_what_another_did_to_its_lists(mutate, hold, kind):
    seen = []

    def spy(**rows):
        seen.append(as_plain(rows))
        return [0.0, 0.0]

    rows, untouched = batch(), as_plain(batch())
    held = hold(vandal(mutate)[kind])
    total = WeightedSum([held, spy])
    total(**rows)
    assert seen == [untouched]
    assert as_plain(rows) == untouched


@pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS)
def test_trl_and_a_server_keep_their_lists(mutate):
    rows, untouched = batch(), as_plain(batch())
    checked, weights_for_trl = RewardArguments([vandal(mutate)[0], "EndsWithSentence"]).load_for_trl()
    assert [reward(**rows) for reward in checked] == [[0.5, 0.25], [1.0, 1.0]]  # TRL gives all the same lists
    texts = {name: rows.pop(name) for name in ("prompts", "completions", "completion_ids")}
    answer = score_rows(WeightedSum([vandal(mutate)[0], load_reward("EndsWithSentence")]), {**texts, "columns": rows})
    assert answer["parts"]["EndsWithSentence"] == [1.0, 1.0]
    assert as_plain(texts | rows) == untouched


def test_a_reward_that_changes_its_lists_and_fails_is_named_with_the_row_as_it_was_written():
    def broken(completions, **kwargs):
        completions.clear()
        raise KeyError("gone")

    with pytest.raises(RewardError, match=r"'broken' raised KeyError.*row 0 \(prompt 'p', completion 'as written'\)"):
        compute_rewards([broken], ["p"], ["as written"], [[1]], {})


def test_settings_stay_what_the_list_of_rewards_says():
    def greedy(completions, words, **kwargs):
        return [float(words.pop() in text) for text in completions]

    reward = load_reward(greedy, args={"words": ["good", "bad"]})
    assert reward(completions=["bad", "good"]) == reward(completions=["bad", "good"]) == [1.0, 1.0]


def test_a_run_of_ppo_and_its_table_are_those_without_the_reward_that_changes_its_lists(tmp_path):
    def reckless(prompts, completions, completion_ids, number, **kwargs):
        prompts.clear()
        number[:] = [0] * len(number)
        completions[:] = ["changed"] * len(completions)
        for ids in completion_ids:
            ids[:] = [0] * len(ids)
        return [0.0] * len(completions)

    runs, tables = [], []
    for name, func in (("without", lambda completions, **kwargs: [0.0] * len(completions)), ("with", reckless)):
        func.__name__ = "other"
        run = trainer(
            tmp_path / name,
            reward=WeightedSum([func, many_short_tokens], weights=[0.0, 1.0]),
            eval_dataset=DATA.select(range(4)),
            eval_strategy="epoch",
        )
        run.train()
        runs.append(weights(run))
        tables.append([path.read_text() for path in sorted((tmp_path / name / "completions").glob("*"))])
    assert largest_difference(*runs) == 0.0
    assert tables[0] == tables[1]
    assert tables[0]


def test_copies_of_ten_thousand_rows_take_less_than_a_step_would_notice():
    rows = {
        "prompts": [f"The film {row} is" for row in range(10_000)],
        "completions": [" good" * 20] * 10_000,
        "completion_ids": [list(range(20)) for _ in range(10_000)],
        "answer": ["a"] * 10_000,
    }
    begin = time.process_time()
    own_batch(rows)
    assert time.process_time() - begin < 0.5  # measured: 0.01 to 0.02 s


# ---- values


def returning(*values):
    def fixed(**kwargs):
        return list(values)

    return fixed


ROW = {"prompts": ["p"], "completions": ["c"], "completion_ids": [[1]]}
TOO_LARGE = [10**400, -(10**5000), Fraction(10**400), np.float64(1e300), np.float32(3e38), torch.tensor(1e30), 2e18]


NO_NUMBERS = [float("nan"), float("inf"), -np.inf, 1j, [10**5000]]


@pytest.mark.parametrize("value", TOO_LARGE + NO_NUMBERS, ids=range(len(TOO_LARGE + NO_NUMBERS)))
def test_a_number_that_no_trainer_can_compute_with_is_an_error_of_the_reward(value):
    (checked,), _ = RewardArguments([returning(value)]).load_for_trl()
    holders = [WeightedSum([returning(value)]), Scale(returning(value)), Gate(returning(value), lambda **k: [1.0])]
    for reward in [checked, *holders]:
        with pytest.raises(RewardError, match="Reward 'fixed' returned .*row 0 .*finite number") as caught:
            reward(**ROW)
        assert isinstance(caught.value, ValueError)


def test_the_largest_number_and_its_spread_are_finite_in_float32():
    assert WeightedSum([returning(LARGEST)])(**ROW) == [LARGEST]
    assert torch.tensor([LARGEST, -LARGEST], dtype=torch.float32).std().isfinite()


@pytest.mark.parametrize("values", [(), (1.0, 2.0)])
def test_a_wrong_count_is_a_value_error_and_what_a_reward_raises_is_none(values):
    with pytest.raises(ValueError, match=f"returned {len(values)} values for 1 completions"):
        compute_rewards([returning(*values)], **ROW, columns={})
    with pytest.raises(RewardError, match="raised KeyError") as caught:
        compute_rewards([lambda answer, **kwargs: {}["x"]], **ROW, columns={"answer": ["a"]})
    assert not isinstance(caught.value, ValueError)


def per_token(**kwargs):
    return [[1e10]]


per_token.per_token = True


@pytest.mark.parametrize("weight", [1e300, -1e200, 1e9, lambda progress: 1e300])
def test_a_weight_that_makes_a_number_too_large_is_an_error_of_its_reward(weight):
    rewards = RewardArguments([{"func": returning(1e10), "weight": weight}])
    (for_trl,), _ = rewards.load_for_trl()
    total = WeightedSum([per_token], weights=[weight])
    sums = [for_trl, WeightedSum([returning(1e10)], [weight]), total]
    for reward, name in zip(sums, ["fixed", "fixed", "per_token"], strict=True):
        with pytest.raises(ValueError, match=rf"Reward '{name}' is 1e\+10 in row 0, and its weight .* Scale, a Clip"):
            reward(**ROW)
    with pytest.raises(RewardError, match="Reward 'per_token' is 1e"):
        total.combine_tokens({"per_token": [[1e10]]}, [[1]])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1", True, 10**400])
def test_a_function_that_gives_no_weight_is_named_with_its_reward(value):
    total = WeightedSum([returning(1.0)], weights=[lambda progress: value])
    (for_trl,), _ = RewardArguments([{"func": returning(1.0), "weight": lambda progress: value}]).load_for_trl()
    for reward in (total, for_trl):
        with pytest.raises(ValueError, match=r"weight of reward 'fixed' is .* when 0% of the run is over"):
            reward(**ROW)


@pytest.mark.parametrize("weight", [10**400, float("nan"), "1", True])
def test_a_weight_that_is_no_finite_number_is_refused_at_the_start(weight):
    with pytest.raises(ValueError, match="weight of reward 'fixed' is .* finite number or a WeightSchedule"):
        WeightedSum([returning(1.0)], weights=[weight])


def test_a_message_has_one_full_stop():
    def broken(**kwargs):
        raise OSError("The disk is full.")

    with pytest.raises(RewardError, match=r"The disk is full\. None"):
        compute_rewards([broken], [], [], [], {})
