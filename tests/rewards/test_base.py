import pickle

import numpy as np
import pytest
import torch

from rlhf_recipes.rewards import RewardError, WeightedSum, as_text, compute_rewards, load_reward, reward_name

PROMPTS = ["The film is", "The cast is", "The plot is"]
COMPLETIONS = [" good.", " bad", " so thin that it is hardly there"]
COMPLETION_IDS = [[5, 6, 2], [7], [8, 9, 10, 11, 12]]
ROWS = {"prompts": PROMPTS, "completions": COMPLETIONS, "completion_ids": COMPLETION_IDS}


def brevity(completion_ids, **kwargs):
    return [-float(len(ids)) for ids in completion_ids]


def praise(completions, **kwargs):
    return [1.0 if "good" in completion else None for completion in completions]


def returning(values):
    def fixed(**kwargs):
        return values

    return fixed


def compute(func, **columns):
    return compute_rewards([func], columns=columns, **ROWS)


def test_each_reward_gives_one_series_by_its_name():
    assert compute_rewards([brevity, praise], columns={}, **ROWS) == {
        "brevity": [-3.0, -1.0, -5.0],
        "praise": [1.0, None, None],
    }


def test_a_reward_is_called_by_keyword_with_columns_and_the_tools_of_the_trainer():
    seen = {}

    def spy(**kwargs):
        seen.update(kwargs)
        return [0.0, 0.0, 0.0]

    compute(spy, answer=["a", "b", "c"], trainer_state="state", log_extra=print, log_metric=print)
    assert seen == {
        "prompts": PROMPTS,
        "completions": COMPLETIONS,
        "completion_ids": COMPLETION_IDS,
        "answer": ["a", "b", "c"],
        "trainer_state": "state",
        "log_extra": print,
        "log_metric": print,
    }


@pytest.mark.parametrize(
    "values",
    [
        (1, 0.5, None),
        [True, np.float32(0.5), None],
        [torch.tensor(1.0), torch.tensor(0.5), None],
    ],
)
def test_numbers_of_any_kind_become_floats(values):
    series = compute(returning(values))["fixed"]
    assert series == [1.0, 0.5, None]
    assert [type(value) for value in series] == [float, float, type(None)]


@pytest.mark.parametrize("values", [np.array([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0])])
def test_an_array_is_as_good_as_a_list(values):
    assert compute(returning(values)) == {"fixed": [1.0, 2.0, 3.0]}


def test_the_wrong_count_names_the_reward_and_both_counts():
    with pytest.raises(RewardError, match=r"Reward 'fixed' returned 2 values for 3 completions"):
        compute(returning([1.0, 2.0]))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.0, float("nan"), 0.0], "returned nan, for row 1 (prompt 'The cast is', completion ' bad')"),
        ([0.0, 0.0, float("-inf")], "returned -inf, for row 2"),
        (["high", 0.0, 0.0], "returned 'high', of type str, for row 0"),
        ([0.0, [1.0, 2.0], 0.0], "returned [1.0, 2.0], of type list, for row 1"),
        ([0.0, torch.tensor([1.0, 2.0]), 0.0], "returned [1.0, 2.0], of type list, for row 1"),
    ],
)
def test_what_is_no_finite_number_is_refused_with_its_row(values, words):
    with pytest.raises(RewardError) as caught:
        compute(returning(values))
    assert words in str(caught.value)
    assert "Reward 'fixed'" in str(caught.value)


@pytest.mark.parametrize(("values", "kind"), [(None, "NoneType"), (0.5, "float"), ("abc", "str"), ({1: 2}, "dict")])
def test_what_is_no_list_is_refused(values, kind):
    with pytest.raises(RewardError, match=rf"'fixed' returned .* \({kind}\); it must return a list"):
        compute(returning(values))


def test_long_texts_are_shortened_in_errors():
    rows = {"prompts": ["x" * 500], "completions": ["y" * 500], "completion_ids": [[1]]}
    with pytest.raises(RewardError) as caught:
        compute_rewards([returning([float("nan")])], columns={}, **rows)
    assert f"prompt '{'x' * 75}...', completion '{'y' * 75}...'" in str(caught.value)


def test_a_reward_that_raises_names_itself_and_the_first_row_that_fails_alone():
    def inverse(completion_ids, **kwargs):
        return [1 / (len(ids) - 1) for ids in completion_ids]

    with pytest.raises(RewardError) as caught:
        compute(inverse, answer=["a", "b", "c"])
    line = inverse.__code__.co_firstlineno + 1
    assert str(caught.value) == (
        "Reward 'inverse' raised ZeroDivisionError: division by zero. Tried one by one, the first row to fail is "
        "row 1 (prompt 'The cast is', completion ' bad'). It was called with prompts, completions, completion_ids, "
        f"answer. It was raised in {__file__}, line {line}."
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_row_by_row_each_column_is_cut_and_the_rest_is_passed_on():
    def picky(answer, trainer_state, **kwargs):
        if "b" in answer:
            raise KeyError(trainer_state)
        return [0.0] * len(answer)

    with pytest.raises(RewardError, match=r"'picky' raised KeyError: 'state'.*first row to fail is row 1 "):
        compute(picky, answer=["a", "b", "c"], trainer_state="state")


def test_a_failure_of_the_batch_alone_is_said_to_be_one():
    def crowded(completions, **kwargs):
        if len(completions) > 1:
            raise ValueError("too many")
        return [0.0]

    with pytest.raises(RewardError, match=r"'crowded' raised ValueError: too many. None of its 3 rows fails alone"):
        compute(crowded)


def test_a_missing_column_shows_which_there_are():
    def exact(completions, solution, **kwargs):
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"argument: 'solution'.*called with prompts, .*completion_ids, answer\."):
        compute(exact, answer=["a", "b", "c"])


def test_a_column_does_not_replace_what_every_reward_is_given():
    with pytest.raises(ValueError, match="column 'completions' has the name of what every reward is given; rename it"):
        compute(brevity, completions=[["a", "b"]] * 3)


def test_an_interrupt_is_not_taken_for_a_failing_reward():
    def interrupted(**kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute(interrupted)


def test_two_rewards_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"Two rewards are named 'brevity'.*names of their own"):
        WeightedSum([brevity, brevity])


def test_a_name_is_that_of_the_function_or_of_the_class():
    class Silence:
        def __call__(self, completions, **kwargs):
            return [0.0] * len(completions)

    assert reward_name(brevity) == "brevity"
    assert reward_name(Silence()) == "Silence"


def test_a_weighted_sum_adds_what_applies():
    reward = WeightedSum([brevity, praise], weights=[0.5, 3.0])
    parts = reward.parts(**ROWS)
    assert parts == {"brevity": [-3.0, -1.0, -5.0], "praise": [1.0, None, None]}
    assert reward.combine(parts) == [0.5 * -3.0 + 3.0 * 1.0, -0.5, -2.5]
    assert reward(**ROWS) == [1.5, -0.5, -2.5]


def test_weights_are_one_unless_given():
    assert WeightedSum([brevity, praise])(**ROWS) == [-2.0, -1.0, -5.0]


def test_a_row_without_any_reward_is_an_error():
    with pytest.raises(RewardError, match=r"Row 1 has no reward: each of praise returned None"):
        WeightedSum([praise])(**ROWS)


def test_weights_that_do_not_match_show_both_counts_and_the_names():
    with pytest.raises(ValueError, match=r"3 weights were given for 2 rewards \(brevity, praise\): \[1, 2, 3\]"):
        WeightedSum([brevity, praise], weights=[1, 2, 3])


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "0.5", True, None])
def test_a_weight_is_a_finite_number(weight):
    with pytest.raises(ValueError, match=r"The weight of reward 'praise' is .* must be a finite number"):
        WeightedSum([brevity, praise], weights=[1.0, weight])


def test_no_reward_and_no_callable_are_refused():
    with pytest.raises(ValueError, match="No reward was given"):
        WeightedSum([])
    with pytest.raises(TypeError, match=r"must be callable, but 'brevity' is of type str"):
        WeightedSum(["brevity"])


def test_a_sum_of_sums_is_a_reward_and_a_failure_names_the_innermost():
    inner = WeightedSum([brevity, praise], weights=[1.0, 10.0], name="style")
    outer = WeightedSum([inner, returning([1.0, 2.0, 3.0])], weights=[2.0, 1.0])
    assert outer.parts(**ROWS) == {"style": [7.0, -1.0, -5.0], "fixed": [1.0, 2.0, 3.0]}
    assert outer(**ROWS) == [15.0, 0.0, -7.0]
    with pytest.raises(RewardError, match=r"^Reward 'fixed' returned 1 values for 3 completions"):
        WeightedSum([WeightedSum([returning([1.0])])])(**ROWS)


def test_a_weighted_sum_logs_the_mean_of_each_part_where_the_trainer_can():
    logged = {}
    WeightedSum([brevity, praise])(**ROWS, log_metric=logged.__setitem__)
    assert logged == {"rewards/weighted_sum/brevity": -3.0, "rewards/weighted_sum/praise": 1.0}


def test_a_weighted_sum_survives_pickling():
    reward = pickle.loads(pickle.dumps(WeightedSum([brevity, praise], weights=[0.5, 3.0], name="both")))
    assert reward.__name__ == "both"
    assert reward(**ROWS) == [1.5, -0.5, -2.5]


# ---- one number for each token


def per_token(values, name="steps", potential=False):
    def reward(**kwargs):
        return values

    reward.__name__, reward.per_token, reward.potential = name, True, potential
    return reward


STEPS = [[1.0, 2.0, 4.0], None, [0.0, 0.0, 0.5, 0.0, 0.25]]  # of 3, 1 and 5 tokens
FILLED = [[0.5, 0.5, 0.5], [3.0], [0.0] * 5]


@pytest.mark.parametrize(
    "values",
    [
        STEPS,
        (np.array([1, 2, 4]), None, torch.tensor([0, 0, 0.5, 0, 0.25])),
        [[torch.tensor(1), np.float32(2), 4], None, (0, False, 0.5, 0, 0.25)],
    ],
)
def test_a_per_token_reward_gives_lists_of_floats(values):
    steps = compute(per_token(values))["steps"]
    assert steps == STEPS
    assert {type(value) for row in steps if row is not None for value in row} == {float}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[1.0, 2.0], None, None], "returned 2 numbers for the 3 tokens of row 0 (prompt 'The film is'"),
        ([[1.0, 2.0, 3.0], [1.0, 2.0], None], "returned 2 numbers for the 1 tokens of row 1"),
        ([[1.0, 2.0, 3.0], [], None], "returned 0 numbers for the 1 tokens of row 1"),
        ([None, 0.5, None], "returned 0.5 (float), for row 1"),
        ([None, "3", None], "returned '3' (str), for row 1"),
        ([None, [float("nan")], None], "returned nan, for token 0 of row 1"),
        ([[1.0, None, 3.0], None, None], "returned None, of type NoneType, for token 1 of row 0"),
        ([[1.0, 2.0, 3.0], None], "returned 2 values for 3 completions; it must return one list of numbers or None"),
        (1.0, "returned 1.0 (float); it must return a list with one list of numbers or None for each"),
    ],
)
def test_per_token_rewards_that_do_not_fit_their_tokens_are_refused(values, words):
    with pytest.raises(RewardError) as caught:
        compute(per_token(values))
    assert words in str(caught.value)
    assert "Reward 'steps'" in str(caught.value)


def test_the_kinds_of_reward_are_combined_apart():
    reward = WeightedSum(
        [praise, per_token(STEPS), per_token(FILLED, "more"), per_token(FILLED, "phi", potential=True)],
        weights=[3.0, 2.0, -1.0, 10.0],
    )
    parts = reward.parts(**ROWS)
    assert parts == {"praise": [1.0, None, None], "steps": STEPS, "more": FILLED, "phi": FILLED}
    assert reward.combine(parts) == [3.0, 0.0, 0.0]  # praise alone; 0 where only the others apply
    # 2 * steps - more
    assert reward.combine_tokens(parts, COMPLETION_IDS) == [[1.5, 3.5, 7.5], [-3.0], [0.0, 0.0, 1.0, 0.0, 0.5]]
    assert reward.combine_potentials(parts, COMPLETION_IDS) == [[5.0, 5.0, 5.0], [30.0], [0.0] * 5]


def test_rows_without_a_per_token_reward_are_zeros():
    reward = WeightedSum([brevity, per_token(STEPS), per_token(STEPS, "phi", potential=True)])
    parts = reward.parts(**ROWS)
    assert reward.combine_tokens(parts, COMPLETION_IDS)[1] == [0.0]
    assert reward.combine_potentials(parts, COMPLETION_IDS)[1] == [0.0]


def test_without_a_reward_of_a_kind_there_is_nothing_to_combine():
    reward = WeightedSum([brevity])
    assert reward.combine_tokens(reward.parts(**ROWS), COMPLETION_IDS) is None
    assert reward.combine_potentials(reward.parts(**ROWS), COMPLETION_IDS) is None
    # A potential is no per-token reward, nor the other way round.
    reward = WeightedSum([brevity, per_token(FILLED, potential=True)])
    assert reward.combine_tokens(reward.parts(**ROWS), COMPLETION_IDS) is None
    reward = WeightedSum([brevity, per_token(FILLED)])
    assert reward.combine_potentials(reward.parts(**ROWS), COMPLETION_IDS) is None


def test_a_row_without_a_reward_of_any_kind_is_an_error():
    reward = WeightedSum([praise, per_token(STEPS)])
    parts = reward.parts(**ROWS)
    for combine in (reward.combine, reward.totals):
        with pytest.raises(RewardError, match=r"Row 1 has no reward: each of praise, steps returned None"):
            combine(parts)


def test_called_as_a_reward_a_sum_adds_the_tokens_up_and_leaves_potentials_out():
    logged = {}
    reward = WeightedSum(
        [praise, per_token(STEPS), per_token([[9.0] * len(ids) for ids in COMPLETION_IDS], "phi", potential=True)],
        weights=[3.0, 2.0, 1.0],
    )
    # 3 * 1 + 2 * (1 + 2 + 4), nothing but the potential, 2 * (0.5 + 0.25)
    assert reward(**ROWS, log_metric=logged.__setitem__) == [17.0, 0.0, 1.5]
    assert logged == {"rewards/weighted_sum/praise": 1.0, "rewards/weighted_sum/steps": (7 + 0.75) / 2}
    assert reward.per_row(reward.parts(**ROWS)) == {"praise": [1.0, None, None], "steps": [7.0, None, 0.75]}


@pytest.mark.parametrize("potential", [False, True])
def test_a_sum_with_per_token_rewards_cannot_be_part_of_another(potential):
    inner = WeightedSum([brevity, per_token(STEPS, potential=potential)], name="inner")
    with pytest.raises(ValueError, match=r"sum 'inner' contains the per-token rewards steps.*into the outer sum"):
        WeightedSum([praise, inner])
    with pytest.raises(ValueError, match=r"sum 'renamed' contains the per-token rewards steps"):
        WeightedSum([load_reward(inner, name="renamed")])


def test_a_potential_is_per_token():
    def phi(**kwargs):
        return [0.0]

    phi.potential = True
    with pytest.raises(ValueError, match=r"'phi' has potential = True but not per_token = True"):
        WeightedSum([phi])


# ---- token ids of the prompts


def test_the_ids_of_the_prompts_go_to_those_that_want_them_alone():
    seen = {}

    def wanting(prompt_ids, **kwargs):
        seen["wanting"] = prompt_ids
        return [0.0] * len(prompt_ids)

    def other(completions, **kwargs):
        seen["other"] = kwargs
        return [0.0] * len(completions)

    wanting.wants_prompt_ids = True
    ids = [[1, 2], [3], [4, 5, 6]]
    WeightedSum([wanting, other]).parts(**ROWS, prompt_ids=ids, answer=["a", "b", "c"])
    assert seen["wanting"] == ids
    assert set(seen["other"]) == {"prompts", "completion_ids", "answer"}
    # A sum passes them on to what is in it, and wants them only then.
    seen.clear()
    WeightedSum([WeightedSum([wanting], name="inner"), WeightedSum([other], name="without")])(**ROWS, prompt_ids=ids)
    assert seen["wanting"] == ids
    assert "prompt_ids" not in seen["other"]


def test_without_ids_of_the_prompts_a_reward_that_needs_them_says_so():
    def wanting(prompt_ids, **kwargs):
        return [0.0] * len(prompt_ids)

    wanting.wants_prompt_ids = True
    with pytest.raises(RewardError, match=r"'wanting' raised TypeError: .*argument: 'prompt_ids'"):
        compute(wanting)


def test_the_text_of_messages_is_the_text_of_each():
    assert as_text("plain") == "plain"
    assert as_text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]) == "Hi\nYes?"
    assert as_text([{"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image"}]}]) == "Look"
    assert as_text([{"role": "assistant", "content": None, "tool_calls": []}]) == ""
    assert as_text([]) == ""
