import pickle

import numpy as np
import pytest
import torch

from rlhf_recipes.rewards import RewardError, WeightedSum, as_text, compute_rewards, reward_name

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
    assert str(caught.value) == (
        "Reward 'inverse' raised ZeroDivisionError: division by zero. Tried one by one, the first row to fail is "
        "row 1 (prompt 'The cast is', completion ' bad'). It was called with prompts, completions, completion_ids, "
        "answer."
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


def test_the_text_of_messages_is_the_text_of_each():
    assert as_text("plain") == "plain"
    assert as_text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]) == "Hi\nYes?"
    assert as_text([{"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image"}]}]) == "Look"
    assert as_text([{"role": "assistant", "content": None, "tool_calls": []}]) == ""
    assert as_text([]) == ""
