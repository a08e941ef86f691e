import math
import pickle

import pytest

from rlhf_recipes.rewards import (
    Clip,
    Discount,
    DistinctN,
    EnsembleReward,
    Gate,
    Language,
    LanguageTool,
    LengthWindow,
    Map,
    Otherwise,
    PlainProse,
    PrefixScore,
    Product,
    Relative,
    RemoteReward,
    Repetition,
    RewardError,
    Scale,
    WeightedSum,
    WeightSchedule,
    load_rewards,
)
from tests.rewards.combine.small_rewards import ROWS, length, per_token, signed, sometimes
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def test_a_product():
    assert Product([length, length_plus_one := Scale(length, center=-1.0, name="plus_one")])(**ROWS) == [
        2.0,
        6.0,
        12.0,
    ]
    assert length_plus_one.__name__ == "plus_one"


def test_a_product_does_not_apply_where_a_factor_does_not():
    assert Product([length, sometimes])(**ROWS) == [0.5, None, 9.0]


def test_a_factor_below_0_is_refused_with_the_way_out():
    with pytest.raises(RewardError, match=r"factor 'signed' of 'Product' is -1 in row 0.*Map"):
        Product([length, signed])(**ROWS)
    mapped = Product([length, Map(signed, by="relu")])
    assert mapped(**ROWS) == [0.0, 0.0, 6.0]


def test_a_gate_counts_only_where_the_condition_reaches_the_threshold():
    assert Gate(length, only_if=signed)(**ROWS) == [0.0, 0.0, 3.0]
    assert Gate(length, only_if=signed, at_least=0.0, otherwise=-5.0)(**ROWS) == [-5.0, 2.0, 3.0]
    assert Gate(length, only_if=sometimes, at_least=1.0, otherwise=None)(**ROWS) == [None, None, 3.0]
    assert Gate(sometimes, only_if=length, at_least=1.0)(**ROWS) == [0.5, None, 3.0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Product([length]), "two rewards or more"),
        (lambda: Product([length, length]), "Two rewards are named 'length'"),
        (lambda: Gate(length), "A reward is missing"),
        (lambda: Clip(length), "neither low nor high"),
        (lambda: Clip(length, low=1.0, high=1.0), "low must be below high"),
        (lambda: Scale(length, scale=0.0), "the scale must be above 0"),
        (lambda: Scale(length, scale=-1.0), "negative weight"),
        (lambda: Map(length, by="square"), "must be one of sigmoid, exp, softplus, relu"),
        (lambda: Map(length, scale=math.inf), "the scale must be above 0"),
        (lambda: Gate("NoSuch", only_if=length), "There is no reward 'NoSuch'"),
    ],
)
def test_compositions_that_cannot_be(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_composition_hands_on_what_is_in_it():
    def wanting(completions, prompt_ids=None, **kwargs):
        return [float(len(ids)) for ids in prompt_ids]

    def fixed(completions, **kwargs):
        return [2.0 for _ in completions]

    wanting.wants_prompt_ids = True
    fixed.constant = True
    product = Product([wanting, fixed])
    assert product.wants_prompt_ids
    assert not product.wants_ref_logprobs
    assert not product.constant  # one factor differs between completions
    assert Scale(fixed).constant
    assert product(**ROWS, prompt_ids=[[1], [1, 2], [1, 2, 3]]) == [2.0, 4.0, 6.0]


def test_the_means_of_what_is_inside_are_logged():
    logged = {}
    Product([length, sometimes], name="both")(**ROWS, log_metric=logged.__setitem__)
    assert logged == {"both/length": 2.0, "both/sometimes": 1.75}


def test_a_failure_inside_names_the_reward_inside():
    def broken(completions, **kwargs):
        raise KeyError("no such thing")

    with pytest.raises(RewardError, match="'broken' raised KeyError"):
        WeightedSum([Gate(length, only_if=broken)])(**ROWS)


def test_out_of_a_yaml_file_nested_and_pickled():
    spec = {
        "func": "Product",
        "name": "quality_per_word",
        "args": {
            "rewards": [
                {"func": "Map", "name": "ends", "args": {"reward": "EndsWithSentence", "by": "sigmoid"}},
                {"func": "Clip", "args": {"reward": {"func": "LengthWindow", "args": {"unit": "words"}}, "high": 0.5}},
            ]
        },
    }
    rewards = load_rewards([spec])
    rows = ROWS | {"completions": ["yes.", "no", "maybe so."]}
    sigmoid_of_1 = 0.7310585786300049
    assert rewards(**rows) == pytest.approx([sigmoid_of_1 / 2, 0.25, sigmoid_of_1 / 2])
    assert rewards.names == ("quality_per_word",)
    assert pickle.loads(pickle.dumps(rewards))(**rows) == rewards(**rows)


def test_its_description_does_not_change_from_process_to_process():
    """A resumed run compares descriptions, so that no address of an object may stand there."""
    assert repr(Gate(length, only_if=signed)) == "Gate(length, signed, at_least=0.5, otherwise=0.0)"
    assert repr(Product([length, Map(signed)])) == "Product(length, signed)"


def test_relative_to_the_other_completions_of_the_prompt():
    rows = {
        "prompts": ["a", "b", "a", "a", "b", "c"],
        "completions": ["x", "xx", "xxxx", "xxxxxx", "x", "xxx"],
        "completion_ids": [[1]] * 6,
    }
    # Of prompt a: 1, 4, 6. The others' means are 5, 3.5 and 2.5.
    assert Relative(length)(**rows) == [1 - 5, 2 - 1, 4 - 3.5, 6 - 2.5, 1 - 2, None]


def test_relative_passes_over_what_does_not_apply():
    def some(completions, **kwargs):
        return [3.0, None, 1.0, None]

    rows = {"prompts": ["a", "a", "a", "b"], "completions": [""] * 4, "completion_ids": [[1]] * 4}
    assert Relative(some)(**rows) == [2.0, None, -2.0, None]


def test_what_compares_completions_of_a_prompt_says_so():
    from rlhf_recipes.rewards import SelfBLEU

    alone, one_of_two = WeightedSum([SelfBLEU()]), WeightedSum([SelfBLEU(), length])
    assert [alone.wants_siblings, one_of_two.wants_siblings] == [True, False]
    assert Product([SelfBLEU(), length]).wants_siblings  # it applies only where both do
    assert Relative(length).wants_siblings


def test_a_sum_with_rewards_per_token_is_no_factor():
    with pytest.raises(ValueError, match="contains the per-token rewards per_token"):
        Product([length, WeightedSum([per_token])])


BAD_NUMBERS = [math.nan, math.inf, -math.inf, 10**400, "0.5", True, [1.0], 1j]
SETTINGS = {
    "Gate.at_least": lambda value: Gate(length, only_if=signed, at_least=value),
    "Gate.otherwise": lambda value: Gate(length, only_if=signed, otherwise=value),
    "Clip.low": lambda value: Clip(length, low=value),
    "Clip.high": lambda value: Clip(length, low=0.0, high=value),
    "Scale.scale": lambda value: Scale(length, scale=value),
    "Scale.center": lambda value: Scale(length, center=value),
    "Map.scale": lambda value: Map(length, scale=value),
    "Map.center": lambda value: Map(length, center=value),
    "Otherwise.value": lambda value: Otherwise(length, value=value),
    "Discount.scale": lambda value: Discount(length, scale=value),
    "EnsembleReward.std_coef": lambda value: EnsembleReward([length, signed], std_coef=value),
    "PrefixScore.scale": lambda value: PrefixScore(length, tokenizer=TOKENIZER, scale=value),
    "WeightSchedule.start": lambda value: WeightSchedule(value, 1.0),
    "WeightSchedule.end": lambda value: WeightSchedule(0.0, value),
    "WeightSchedule.until": lambda value: WeightSchedule(0.0, 1.0, until=value),
    "LengthWindow.minimum": lambda value: LengthWindow(minimum=value),
    "LengthWindow.maximum": lambda value: LengthWindow(maximum=value),
    "LengthWindow.margin": lambda value: LengthWindow(margin=value),
    "Repetition.n": lambda value: Repetition(n=value),
    "DistinctN.n": lambda value: DistinctN(n=value),
    "PlainProse.max_digits": lambda value: PlainProse(max_digits=value),
    "Language.min_letters": lambda value: Language(min_letters=value),
    "RemoteReward.batch_size": lambda value: RemoteReward("http://localhost/", batch_size=value),
    "RemoteReward.timeout": lambda value: RemoteReward("http://localhost/", timeout=value),
    "RemoteReward.retries": lambda value: RemoteReward("http://localhost/", retries=value),
    "RemoteReward.backoff": lambda value: RemoteReward("http://localhost/", backoff=value),
    "RemoteReward.max_concurrent": lambda value: RemoteReward("http://localhost/", max_concurrent=value),
    "RemoteReward.max_answer_mb": lambda value: RemoteReward("http://localhost/", max_answer_mb=value),
    "LanguageTool.per": lambda value: LanguageTool(per=value),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("value", BAD_NUMBERS, ids=range(len(BAD_NUMBERS)))
def test_a_setting_that_is_no_finite_number_is_refused_when_the_reward_is_made(setting, value):
    kind, name = setting.split(".")
    with pytest.raises(ValueError, match=name) as caught:
        SETTINGS[setting](value)
    assert kind in str(caught.value) or "schedule" in str(caught.value)


def test_a_way_of_a_weight_that_overflows_is_refused():
    with pytest.raises(ValueError, match="end - start of the weight schedule is inf"):
        WeightSchedule(-1e308, 1e308)


@pytest.mark.parametrize(
    "made",
    [
        Scale(length, scale=1e-300),
        Map(length, by="relu", scale=1e-300),
        Product([Scale(length, scale=1e-10, name="a"), Scale(length, scale=1e-10, name="b")]),
        Gate(length, only_if=signed, at_least=100.0, otherwise=1e300),
        Clip(length, low=1e19),
    ],
    ids=["Scale", "Map", "Product", "Gate", "Clip"],
)
def test_a_number_that_a_composition_makes_too_large_is_an_error_also_where_nobody_else_looks(made):
    with pytest.raises(RewardError, match=f"Reward '{made.__name__}' returned .*, for row 0 .*float32") as caught:
        made(**ROWS)
    assert isinstance(caught.value, ValueError)
