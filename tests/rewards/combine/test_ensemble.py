import pickle

import pytest

from rlhf_recipes.rewards import LearnedReward, RewardError, Vader, WeightedSum
from rlhf_recipes.rewards.combine.ensemble import EnsembleReward
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

PROMPTS = ["The film is", "A dull script", "It was bad, but"]
COMPLETIONS = [" good.", " and a tired cast make this a long evening for all of us.", " the music was great"]
ROWS = {"prompts": PROMPTS, "completions": COMPLETIONS, "completion_ids": [[1], [2], [3]]}


class Says:
    """A member that gives the numbers it was made with."""

    def __init__(self, *values, name="says"):
        self.values = values
        self.__name__ = name

    def __call__(self, **kwargs):
        return list(self.values)


# One row on which all agree, one on which they are 1, 3 and 8: mean 4, variance (9 + 1 + 16) / 3.
MEMBERS = [Says(2.0, 1.0, 0.0), Says(2.0, 3.0, -1.0), Says(2.0, 8.0, 1.0)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [2.0, 4.0, 0.0]),
        ({"reduce": "min"}, [2.0, 1.0, -1.0]),
        ({"reduce": "mean_minus_std"}, [2.0, 4.0 - (26 / 3) ** 0.5, -((2 / 3) ** 0.5)]),
        ({"reduce": "mean_minus_std", "std_coef": 0.5}, [2.0, 4.0 - 0.5 * (26 / 3) ** 0.5, -0.5 * (2 / 3) ** 0.5]),
        ({"reduce": "mean_minus_variance", "std_coef": 0.1}, [2.0, 4.0 - 2.6 / 3, -0.2 / 3]),
    ],
)
def test_members_are_reduced_to_one_number(settings, expected):
    assert EnsembleReward(MEMBERS, **settings)(**ROWS) == pytest.approx(expected)


def test_where_a_member_does_not_apply_the_ensemble_does_not():
    reward = EnsembleReward([Says(1.0, None, 3.0), Says(1.0, 2.0, None)], reduce="min")
    assert reward(**ROWS) == [1.0, None, None]


def test_the_disagreement_is_logged_over_the_rows_that_all_judge():
    logged = {}
    members = [Says(1.0, 0.0, None), Says(3.0, 0.0, 5.0)]  # standard deviations 1 and 0
    EnsembleReward(members, name="judges")(**ROWS, log_metric=logged.__setitem__)
    assert logged == {"judges/disagreement": 0.5}
    logged.clear()
    EnsembleReward([Says(None, None, None)] * 2)(**ROWS, log_metric=logged.__setitem__)
    assert logged == {}


def test_members_come_from_folders_with_their_own_tokenizers(tmp_path):
    folders, alone = [], []
    for kind, seed in (("bert", 0), ("llama", 1), ("bert", 2)):
        tokenizer = tiny_tokenizer(kind, vocab_size=280 + 20 * seed)
        model = tiny_classifier(tokenizer, kind, seed=seed)
        # All are called "reward", as models of several seeds often are.
        folders.append(str(save_tiny(tmp_path / str(seed) / "reward", model, tokenizer)))
        alone.append(LearnedReward(model, tokenizer)(PROMPTS, COMPLETIONS))
    worst = EnsembleReward(folders, reduce="min")
    assert worst(**ROWS) == pytest.approx([min(scores) for scores in zip(*alone, strict=True)], abs=1e-5)
    for row in range(3):
        by_itself = worst([PROMPTS[row]], [COMPLETIONS[row]], [[1]])
        assert by_itself == pytest.approx([min(scores[row] for scores in alone)], abs=1e-5)
    pickled = pickle.dumps(worst)
    assert len(pickled) < 2000
    assert pickle.loads(pickled)(**ROWS) == pytest.approx(worst(**ROWS), abs=1e-6)


def test_members_are_whatever_a_reward_list_may_hold():
    def length(completions, scale, **kwargs):
        return [scale * len(text) for text in completions]

    reward = EnsembleReward(["Vader", {"func": length, "args": {"scale": 0.1}}, Says(1.0, 1.0, 1.0)])
    vader = Vader()(PROMPTS, COMPLETIONS)
    expected = [(v + 0.1 * len(text) + 1.0) / 3 for v, text in zip(vader, COMPLETIONS, strict=True)]
    assert reward(**ROWS) == pytest.approx(expected)


def test_members_are_given_what_they_want_and_no_more():
    class Wants:
        wants_prompt_ids = True
        wants_ref_logprobs = True

        def __call__(self, prompt_ids, ref_logprobs, label, **kwargs):
            rows = zip(prompt_ids, ref_logprobs, label, strict=True)
            return [len(ids) + sum(logprobs) + own for ids, logprobs, own in rows]

    class Plain:
        def __call__(self, **kwargs):
            assert "prompt_ids" not in kwargs
            assert "ref_logprobs" not in kwargs
            return [0.0]

    reward = EnsembleReward([Wants(), Plain()])
    assert reward.wants_prompt_ids
    assert reward.wants_ref_logprobs
    assert not EnsembleReward([Plain(), Plain()]).wants_prompt_ids
    row = {"prompts": ["a"], "completions": ["b"], "completion_ids": [[1]], "label": [10.0]}
    assert reward(**row, prompt_ids=[[1, 2, 3]], ref_logprobs=[[-1.0]]) == [6.0]
    assert WeightedSum([reward])(**row, prompt_ids=[[1, 2, 3]], ref_logprobs=[[-1.0]]) == [6.0]


def test_a_member_that_fails_is_named():
    with pytest.raises(RewardError, match=r"'EnsembleReward/1/second' returned nan, for row 1 \(prompt 'A dull"):
        EnsembleReward([Says(1.0, 1.0, 1.0), Says(1.0, float("nan"), 1.0, name="second")])(**ROWS)
    tokenizer = tiny_tokenizer("bert")
    with pytest.raises(FileNotFoundError, match="No model at './nowhere'"):
        EnsembleReward([LearnedReward(tiny_classifier(tokenizer), tokenizer), "./nowhere"])


@pytest.mark.parametrize(
    ("models", "settings", "words"),
    [
        (["Vader"], {}, r"two models or more, but has \['Vader'\]"),
        ("runs/reward", {}, "a list of two models or more, but has 'runs/reward'"),
        (
            ["Vader", "Vader"],
            {"reduce": "median"},
            "reduce of EnsembleReward is 'median'; it must be one of mean, min, mean_minus_std",
        ),
        (["Vader", "Vader"], {"std_coef": -1.0}, "std_coef -1.0; it must be a number of 0 or more"),
        (["Vader", "Vader"], {"std_coef": float("nan")}, "std_coef nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(models, settings, words):
    with pytest.raises(ValueError, match=words):
        EnsembleReward(models, **settings)


def test_a_member_that_is_per_token_is_refused():
    member = Says(name="steps")
    member.per_token = True
    with pytest.raises(ValueError, match="'steps' gives one for each token"):
        EnsembleReward(["Vader", member])


def test_it_is_weighed_in_a_sum():
    reward = EnsembleReward(MEMBERS, reduce="min", name="worst")
    assert WeightedSum([reward, Says(1.0, 1.0, 1.0)], [2.0, 1.0])(**ROWS) == pytest.approx([5.0, 3.0, -1.0])
