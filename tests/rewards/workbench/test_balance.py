import json
import math

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from rlhf_recipes.figures import bins
from rlhf_recipes.ppo.metrics import reward_figures
from rlhf_recipes.rewards import (
    EndsWithSentence,
    Gate,
    LearnedReward,
    LengthWindow,
    RegexMatch,
    RewardError,
    WeightedSum,
    WeightSchedule,
    load_rewards,
    measure_balance,
)
from rlhf_recipes.rewards.workbench.balance import balance_of
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer


def reward(name, **attributes):
    """A reward that is never called: the tests hand its values over."""

    def func(completions, **kwargs):
        raise AssertionError("not called")

    func.__name__ = name
    vars(func).update(attributes)
    return func


def balance(values, weights=None, progress=0.0, **attributes):
    rewards = WeightedSum([reward(name, **attributes.get(name, {})) for name in values], weights)
    return balance_of(rewards, values, progress)


def figures(result, name):
    return next(one for one in result.rewards if one.name == name)


# Worked by hand: s = a + 0.1 b = 1, 2, 5, 6, less its mean -2.5, -1.5, 1.5, 2.5, so var(s) = 4.25. With a less its
# mean, -1.5 -0.5 0.5 1.5, cov(a, s) = (3.75 + 0.75 + 0.75 + 3.75) / 4 = 2.25; with 0.1 b less its mean, -1 -1 1 1,
# cov(0.1 b, s) = (2.5 + 1.5 + 1.5 + 2.5) / 4 = 2.
AB = {"a": [0.0, 1.0, 2.0, 3.0], "b": [10.0, 10.0, 30.0, 30.0]}


def test_the_figures_of_each_reward():
    result = balance(AB, [1.0, 0.1])
    a, b = result.rewards
    assert (a.name, a.weight, a.rows, b.weight) == ("a", 1.0, 4, 0.1)
    assert (a.mean, a.std) == (1.5, pytest.approx(math.sqrt(1.25)))
    assert (a.minimum, a.lower_quartile, a.median, a.upper_quartile, a.maximum) == (0.0, 0.75, 1.5, 2.25, 3.0)
    assert (b.mean, b.std) == (20.0, 10.0)
    assert (a.share, b.share) == (pytest.approx(2.25 / 4.25), pytest.approx(2 / 4.25))
    assert result.totals == [1.0, 2.0, 5.0, 6.0]
    assert (result.total.mean, result.total.std) == (3.5, pytest.approx(math.sqrt(4.25)))


def test_a_weight_becomes_one_in_units_of_spread():
    a, b = balance(AB, [1.0, 0.1]).rewards
    assert (a.scale, a.center, a.proposed_weight) == (pytest.approx(math.sqrt(1.25)), 1.5, pytest.approx(1.25**-0.5))
    assert (b.scale, b.center, b.proposed_weight) == (10.0, 20.0, pytest.approx(0.01))


def test_equal_weights_give_equal_spread_and_equal_shares_of_two():
    a, b = balance(AB, [1.0, 1.0]).rewards
    assert (a.share, b.share) != (pytest.approx(0.5), pytest.approx(0.5))
    assert a.proposed_weight * a.std == pytest.approx(b.proposed_weight * b.std)
    assert (a.proposed_share, b.proposed_share) == (pytest.approx(0.5), pytest.approx(0.5))


def test_shares_are_those_that_ppo_logs():
    torch.manual_seed(0)
    parts = torch.randn(50, 3)
    parts[::4, 1] = float("nan")
    weights = {"x": 1.0, "y": -2.0, "z": 0.5}
    logged = {key: value for own, _ in reward_figures(parts, list(weights), weights) for key, value in own.items()}
    columns = {name: [None if v != v else v for v in parts[:, k].tolist()] for k, name in enumerate(weights)}
    result = balance(columns, list(weights.values()))
    for name in weights:
        own = figures(result, name)
        assert own.share == pytest.approx(logged[f"reward/{name}/share"], abs=1e-6)
        assert own.std == pytest.approx(logged[f"reward/{name}/std"], abs=1e-6)
    assert sum(one.share for one in result.rewards) == pytest.approx(1.0)
    assert sum(one.proposed_share for one in result.rewards) == pytest.approx(1.0)


def test_correlations_are_over_rows_where_both_apply():
    x = [1.0, 2.0, 3.0, 4.0, None, 9.0]
    y = [1.0, 10.0, 100.0, 1000.0, -5.0, None]
    result = balance({"x": x, "y": y})
    assert result.pearson[0][1] == pytest.approx(np.corrcoef(x[:4], y[:4])[0, 1])
    assert result.spearman[0][1] == pytest.approx(1.0)  # the order is the same
    assert (result.pearson[0][0], result.spearman[1][1]) == (pytest.approx(1.0), pytest.approx(1.0))


def test_equal_values_share_a_rank():
    # Ranks 1 2.5 2.5 4 and 1 2 3 4: 4.5 / sqrt(4.5 * 5), by hand.
    result = balance({"x": [0.0, 5.0, 5.0, 7.0], "y": [1.0, 2.0, 3.0, 4.0]})
    assert result.spearman[0][1] == pytest.approx(math.sqrt(4.5 / 5))


def test_two_rows_say_nothing_of_a_correlation():
    result = balance({"x": [1.0, 2.0, None], "y": [1.0, 5.0, 3.0]})
    assert result.pearson[0][1] is None
    assert result.spearman[0][1] is None


def test_a_constant_reward_is_said_in_words():
    # 0.1 + 0.2 is not 0.3, and no spread.
    result = balance({"x": [0.3, 0.1 + 0.2, 0.3], "y": [1.0, 2.0, 4.0]}, [2.0, 1.0])
    x = figures(result, "x")
    assert (x.scale, x.center, x.proposed_weight) == (None, None, 2.0)
    assert result.pearson[0] == (None, None)
    assert "x is 0.3 for all 3 rows it applies to: it tells no completion from another, and its weight stays." in (
        result.remarks
    )


def test_nothing_is_told_apart():
    result = balance({"x": [1.0, 1.0, 1.0]})
    assert (result.rewards[0].share, result.rewards[0].proposed_share) == (None, None)
    assert result.totals == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([None, None, None], "x applies to none of the 3 rows"),
        ([None, 2.0, None], "x applies to a single row"),
        ([math.nan, 1.0, 2.0], "x gave NaN or infinity for 1 row, left out here"),
        ([-math.inf, 1.0, math.inf], "x gave NaN or infinity for 2 rows, left out here"),
        ([1e308, -1e308, 1e308], "values of x are too large for their spread"),
    ],
)
def test_what_cannot_be_measured_is_said_and_never_divided_by(values, words):
    result = balance({"x": values, "y": [1.0, 2.0, 4.0]})
    assert any(words in remark for remark in result.remarks)
    assert math.isfinite(figures(result, "x").proposed_weight)
    json.dumps(result.as_dict(), allow_nan=False)


def test_rows_without_any_reward():
    result = balance({"x": [1.0, None, 3.0], "y": [0.0, None, None]})
    assert result.totals == [1.0, None, 3.0]
    assert result.total.mean == 2.0
    assert "1 row of 3 got no reward at all; a run would stop at such a row." in result.remarks


def test_per_token_rewards_count_as_their_sums_and_potentials_not_at_all():
    values = {"tokens": [[1.0, 1.0], [2.0, 4.0], None], "phi": [[0.5], [0.5], [0.5]], "x": [1.0, 2.0, 3.0]}
    result = balance(values, tokens={"per_token": True}, phi={"per_token": True, "potential": True})
    assert [one.name for one in result.rewards] == ["tokens", "x"]
    tokens = figures(result, "tokens")
    assert (tokens.rows, tokens.mean, tokens.std) == (2, 4.0, 2.0)
    assert tokens.center == 0.0  # a Scale would take it from every token
    assert result.totals == [3.0, 8.0, 3.0]
    assert any(remark.startswith("phi is a potential") for remark in result.remarks)


def test_a_weight_that_changes():
    schedule = WeightSchedule(start=0.0, end=4.0, until=0.5)
    early = balance(AB, [schedule, 1.0])
    late = balance(AB, [schedule, 1.0], progress=0.25)
    assert (figures(early, "a").weight, figures(late, "a").weight) == (0.0, 2.0)
    assert early.proposed[0] == WeightSchedule(start=0.0, end=4.0 / math.sqrt(1.25), until=0.5)
    [entry] = [one for one in yaml.safe_load(early.to_yaml())["reward_funcs"] if "until" in str(one)]
    assert entry["weight"] == {"start": 0.0, "end": 3.578, "until": 0.5}


# Remarks.


def remarks_of(values, weights=None):
    return " ".join(balance(values, weights).remarks)


def test_two_that_say_the_same():
    values = {"x": [1.0, 2.0, 3.0, 4.0], "y": [2.0, 4.0, 6.0, 8.1]}
    assert "x and y say nearly the same (r = +1.00): one of them is enough" in remarks_of(values)
    turned = {"x": values["x"], "y": [-v for v in values["y"]]}
    assert "x and y say nearly the same, one turned around (r = -1.00)" in remarks_of(turned, [1.0, 0.0])


def test_two_that_pull_against_each_other():
    x, y = [1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 3.0, 0.0]
    r = np.corrcoef(x, y)[0, 1]
    assert -0.95 < r < -0.5
    words = f"x and y pull against each other (r = {r:+.2f} as weighted)"
    assert words in remarks_of({"x": x, "y": y})
    assert words in remarks_of({"x": x, "y": [-v for v in y]}, [1.0, -2.0])  # what is paid for is the same
    assert "against" not in remarks_of({"x": x, "y": y}, [1.0, -2.0])
    assert "x and y go against each other" in remarks_of({"x": x, "y": y}, [1.0, 0.0])


def test_one_that_decides_alone():
    # Not correlated, with variances 0.25 and 6.25: 6.25 of 6.5.
    values = {"a": [0.0, 1.0, 0.0, 1.0], "b": [0.0, 0.0, 5.0, 5.0]}
    assert "b makes 96% of what tells completions apart" in remarks_of(values)
    assert "apart" not in remarks_of(values, [0.0, 1.0])  # alone on purpose


def test_what_the_proposal_does_to_kl():
    # One reward of spread 10 comes to spread 1.
    result = balance({"b": AB["b"]})
    assert "spreads over 1 (standard deviation), now 10" in result.proposal_remarks[0]
    assert "multiply kl_coef by 0.1" in result.proposal_remarks[0]
    assert balance({"x": [0.0, 2.0]}).proposal_remarks == ()  # its spread is 1 already


def test_a_spread_that_rests_on_few_rows():
    result = balance({"x": [1.0] * 19 + [0.0], "y": [float(i) for i in range(20)]})
    assert result.proposal_remarks[0].startswith("x is 1 in 95% of its rows: its spread rests on the few others")


# As YAML, as tables and as an image.

ROWS = {
    "prompts": ["It is"] * 4,
    "completions": [" good.", " good", " bad.", " a long one that ends."],
    "completion_ids": [[1, 2], [3], [4, 5], [6, 7, 8, 9, 10]],
}


def brevity(completion_ids, limit=4, **kwargs):
    return [float(limit - len(ids)) for ids in completion_ids]


def test_the_yaml_is_a_list_of_the_same_rewards_with_the_proposed_weights(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    folder = str(save_tiny(tmp_path / "judge", tiny_classifier(tokenizer), tokenizer))
    rewards = WeightedSum(
        [
            EndsWithSentence(),
            RegexMatch("good", name="praise", forbid=True),
            LearnedReward(folder, batch_size=2),
            load_rewards([{"func": f"{__name__}:brevity", "args": {"limit": 7}}]).reward_funcs[0],
            Gate(LengthWindow(maximum=3), only_if=EndsWithSentence()),
            brevity_of_ten := load_rewards([{"func": brevity, "name": "short", "args": {"limit": 10}}]).reward_funcs[
                0
            ],
        ],
        [1.0, 2.0, 0.5, 1.0, 3.0, 1.0],
    )
    assert brevity_of_ten.__name__ == "short"
    result = measure_balance(rewards, **ROWS)
    again = load_rewards(yaml.safe_load(result.to_yaml())["reward_funcs"])
    assert again.names == rewards.names
    assert again.parts(**ROWS) == rewards.parts(**ROWS)
    assert again.weights == pytest.approx([one.proposed_weight for one in result.rewards], rel=1e-3)


def test_the_specs_of_a_file_are_kept_and_their_weights_replaced():
    specs = [{"func": "RegexMatch", "name": "praise", "args": {"pattern": "good"}, "weight": 2.0}, "EndsWithSentence"]
    rewards = load_rewards(specs)
    text = balance_of(rewards, rewards.parts(**ROWS), specs=specs).to_yaml()
    # Half of the rows have "good": std 0.5. Three of four end: std sqrt(3) / 4 = 0.433.
    assert text == (
        "# Weights by spread, measured on 4 completions.\n"
        "reward_funcs:\n"
        "  - {func: RegexMatch, name: praise, args: {pattern: good}, weight: 4.0}\n"
        "  - {func: EndsWithSentence, weight: 2.309}\n"
    )


def test_a_long_reward_is_written_over_several_lines():
    keywords = [f"keyword number {i}" for i in range(12)]
    rewards = load_rewards([{"func": "KeywordCoverage", "args": {"keywords": keywords}}, "EndsWithSentence"])
    text = measure_balance(rewards, **ROWS).to_yaml()
    assert max(map(len, text.splitlines())) < 111
    assert yaml.safe_load(text)["reward_funcs"][0]["args"] == {"keywords": keywords}


def test_a_reward_that_no_file_could_name_is_marked():
    rewards = WeightedSum([lambda completions, **kwargs: [float(len(text)) for text in completions]])
    assert "made in Python: say where it is" in measure_balance(rewards, **ROWS).to_yaml()


def test_a_reward_that_gives_nan_is_an_error():
    def broken(completions, **kwargs):
        return [math.nan for _ in completions]

    with pytest.raises(RewardError, match=r"'broken' returned nan, for row 0"):
        measure_balance(WeightedSum([broken]), **ROWS)


def test_tables_say_what_was_measured():
    result = balance({"[red]x[/red]": [1.0, 2.0, 4.0], "const": [1.0, 1.0, 1.0]})
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in (result.table(), result.proposal_table(), result.correlation_table()):
        console.print(table)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[2].split() == ["[red]x[/red]", "1", "3", "2.33", "1.25", "1", "1.5", "2", "3", "4", "100%"]
    assert ["const", "1", "0%", "1", "0%", "-", "-"] in [line.split() for line in lines]


@pytest.mark.parametrize(
    "values",
    [
        AB,
        {"x": [1.0, 2.0, 3.0]},
        {"const": [1.0, 1.0, 1.0], "never": [None, None, None], "$a_name$" * 9: [1.0, 2.0, math.inf]},
    ],
)
def test_the_plot_is_an_image(values, tmp_path):
    from PIL import Image

    with Image.open(balance(values).plot(tmp_path / "new" / "balance.png")) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10  # something is drawn


def test_bins():
    edges, exact = bins(np.array([0.0, 1.0, 1.0]), 10)
    assert (edges.tolist(), exact) == ([-0.5, 0.5, 1.5], [0.0, 1.0])
    assert bins(np.array([2.0, 2.0]), 10)[1] == [2.0]
    edges, exact = bins(np.arange(0.0, 10.0, 0.5), 10)
    assert (edges.tolist(), exact) == ([float(i) for i in range(11)], None)
