import math
from dataclasses import dataclass

import numpy as np
import pytest

from rlhf_recipes.reward_modeling.linear.features import BagOfWords, Feature, FeatureGroup, Keywords
from rlhf_recipes.reward_modeling.personal.model import PersonalRewardModel
from rlhf_recipes.reward_modeling.personal.users import user_key

WORDS = ("good", "loud", "slow", "red")
TASTES = {"ann": 2.0, "bob": -2.0, "cid": 1.0, "dora": -1.0}  # what each "loud" is worth to a user
GROUPS = [Keywords((word,), word) for word in WORDS]
FIXED = {"rank": 2, "shared_penalty": 0.1, "taste_penalty": 1.0}


def texts(count=40, seed=0):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, size=6)) for _ in range(count)]


def opinion(text, user):
    """One point for each "good", and what each "loud" is worth to the user."""
    return text.split().count("good") + TASTES[user] * text.split().count("loud")


def rated(users=tuple(TASTES), count=40, noise=0.1):
    generator = np.random.default_rng(1)
    rows = [(text, user) for user in users for text in texts(count)]
    ratings = [opinion(text, user) + noise * generator.standard_normal() for text, user in rows]
    return [""] * len(rows), [text for text, _ in rows], ratings, [user for _, user in rows]


@pytest.fixture(scope="module")
def model():
    return PersonalRewardModel(GROUPS, **FIXED).fit_ratings(*rated())


def correlation(said, wanted):
    return np.corrcoef(said, wanted)[0, 1]


# ---- ratings


def test_each_user_is_told_apart_on_texts_that_nobody_rated(model):
    new = texts(30, seed=5)
    for user in TASTES:
        said = model.scores([""] * 30, new, [user] * 30)
        assert correlation(said, [opinion(text, user) for text in new]) > 0.98


def test_the_shared_score_is_what_an_average_user_thinks(model):
    new = texts(30, seed=5)
    said = model.scores([""] * 30, new)
    assert correlation(said, [text.split().count("good") for text in new]) > 0.95  # tastes for "loud" add up to 0


@pytest.mark.parametrize("nobody", [None, math.nan, "", "  ", "eve", 7])
def test_a_user_who_is_not_known_gets_the_shared_score(model, nobody):
    new = texts(3, seed=5)
    assert np.array_equal(model.scores([""] * 3, new, [nobody] * 3), model.scores([""] * 3, new))


def test_rows_of_one_call_may_be_of_many_users(model):
    alone = [model.scores([""], ["loud loud red"], [user])[0] for user in ("ann", "bob", None)]
    assert model.scores([""] * 3, ["loud loud red"] * 3, ["ann", "bob", None]) == pytest.approx(alone)
    assert len(model.scores([], [], [])) == 0


def test_a_user_of_one_rating_stays_nearer_to_the_shared_score_than_a_user_of_many():
    prompts, completions, ratings, users = rated(("ann", "bob", "cid"))
    row = ("", "loud loud loud good", opinion("loud loud loud good", "dora"), "dora")
    few = [[*column, value] for column, value in zip((prompts, completions, ratings, users), row, strict=True)]
    of_one = PersonalRewardModel(GROUPS, **FIXED).fit_ratings(*few)
    of_many = PersonalRewardModel(GROUPS, **FIXED).fit_ratings(*rated())
    assert 0 < np.linalg.norm(of_one.taste("dora")) < np.linalg.norm(of_many.taste("dora"))


def test_a_user_who_rates_all_alike_is_lenient_and_no_more():
    prompts, completions, ratings, users = rated(("ann", "bob"))
    flat = ["flat"] * 40
    model = PersonalRewardModel(GROUPS, rank=3, shared_penalty=0.1, taste_penalty=0.1).fit_ratings(
        [*prompts, *[""] * 40], [*completions, *texts()], [*ratings, *[9.0] * 40], [*users, *flat]
    )
    said = model.scores([""] * 30, texts(30, seed=5), ["flat"] * 30)
    assert said.mean() == pytest.approx(9.0, abs=0.5)
    assert said.std() < 0.5


def test_names_and_numbers_of_users():
    assert [user_key(user) for user in (7, 7.0, np.int64(7), "7", " 7 ")] == ["7"] * 5
    assert [user_key(user) for user in (None, math.nan, "", " ")] == [None] * 4
    for wrong in (True, 7.5, math.inf, ["ann"], b"ann"):
        with pytest.raises(ValueError, match="whole number"):
            user_key(wrong)


def test_users_as_whole_numbers_and_rows_without_a_user():
    prompts, completions, ratings, users = rated()
    numbered = [{"ann": 1, "bob": 2, "cid": 3.0, "dora": None}[user] for user in users]
    model = PersonalRewardModel(GROUPS, **FIXED).fit_ratings(prompts, completions, ratings, numbered)
    assert model.users == ["1", "2", "3"]
    assert model.scores([""], ["loud"], [1])[0] > model.scores([""], ["loud"], ["2"])[0]


def test_the_mean_of_others_makes_the_shared_head_and_leaves_tastes():
    prompts, completions, ratings, users = rated()
    others = [100.0 + text.split().count("good") for text in completions]
    with_others = PersonalRewardModel(GROUPS, **FIXED).fit_ratings(
        prompts, completions, [rating + 100.0 for rating in ratings], users, others
    )
    new = texts(30, seed=5)
    most = max(text.split().count("good") for text in completions)  # more of it counts as that
    want = [100.0 + min(text.split().count("good"), most) for text in new]
    assert with_others.scores([""] * 30, new) == pytest.approx(want, abs=0.25)  # of the other words too
    for user in TASTES:
        said = with_others.scores([""] * 30, new, [user] * 30)
        assert correlation(said, [opinion(text, user) for text in new]) > 0.98
    some = [None if row % 2 else value for row, value in enumerate(others)]
    PersonalRewardModel(GROUPS, **FIXED).fit_ratings(prompts, completions, ratings, users, some)


def test_without_penalties_they_are_chosen_and_a_second_fit_chooses_anew():
    model = PersonalRewardModel(GROUPS, rank=2)
    model.fit_ratings(*rated(count=12))
    assert all(penalty > 0 for penalty in model.penalties)
    assert model.wanted == (None, None)


# ---- new users


def test_a_new_user_is_learned_from_a_few_ratings():
    model = PersonalRewardModel(GROUPS, **FIXED).fit_ratings(*rated(("ann", "bob", "cid")))
    before = model.scores([""] * 4, texts(4), ["ann", "bob", "cid", "dora"])
    few = texts(8, seed=3)
    taste = model.add_user("dora", [""] * 8, few, [opinion(text, "dora") for text in few])
    new = texts(30, seed=5)
    assert correlation(model.scores([""] * 30, new, ["dora"] * 30), [opinion(text, "dora") for text in new]) > 0.95
    assert taste == pytest.approx(model.taste("dora"))
    after = model.scores([""] * 4, texts(4), ["ann", "bob", "cid", "dora"])
    assert np.array_equal(before[:3], after[:3])


def test_ratings_one_after_the_other_and_all_at_once_come_to_the_same(model):
    few = texts(6, seed=3)
    ratings = [opinion(text, "dora") for text in few]
    at_once = model.add_user("all at once", [""] * 6, few, ratings)
    for text, rating in zip(few, ratings, strict=True):
        step_by_step = model.add_user("step by step", [""], [text], [rating])
    assert step_by_step == pytest.approx(at_once, rel=1e-9)


def test_the_users_of_training_are_what_their_ratings_would_add():
    """The posterior in training and that of `add_user` are one formula."""
    prompts, completions, ratings, users = rated()
    model = PersonalRewardModel(GROUPS, **FIXED).fit_ratings(prompts, completions, ratings, users)
    own = [row for row, user in enumerate(users) if user == "bob"]
    added = model.add_user("bob again", [""] * 40, [completions[row] for row in own], [ratings[row] for row in own])
    assert added == pytest.approx(model.taste("bob"), rel=1e-6)


def test_a_new_user_of_a_model_that_knows_the_mean_of_others():
    """What others say of a text is as good as a shared head that is right: here it is 100 higher than that."""
    prompts, completions, ratings, users = rated()
    others = [float(text.split().count("good")) for text in completions]
    model = PersonalRewardModel(GROUPS, **FIXED).fit_ratings(prompts, completions, ratings, users, others)
    few = texts(8, seed=3)
    own = [opinion(text, "dora") for text in few]
    plain = model.add_user("plain", [""] * 8, few, own)
    means = model.scores([""] * 8, few)
    shifted = model.add_user("shifted", [""] * 8, few, np.array(own) + 100, (means + 100).tolist())
    assert shifted == pytest.approx(plain)
    half = [None if row % 2 else value for row, value in enumerate(means)]
    assert model.add_user("half", [""] * 8, few, own, half) == pytest.approx(plain)


def test_a_mistake_leaves_no_user_behind(model):
    with pytest.raises(ValueError, match="1 mean ratings by others for 2 rows"):
        model.add_user("nobody yet", [""] * 2, ["loud", "red"], [1.0, 2.0], [1.0])
    assert "nobody yet" not in model.users


# ---- pairs


def chosen_by(users, count=60):
    """Pairs of texts, chosen by Bradley and Terry's odds."""
    generator = np.random.default_rng(2)
    rows = []
    for user in users:
        for first, second in zip(texts(count, seed=7), texts(count, seed=8), strict=True):
            odds = opinion(first, user) - opinion(second, user)
            swap = generator.random() > 1 / (1 + math.exp(-odds))
            rows.append((second, first, user) if swap else (first, second, user))
    chosen, rejected, of = zip(*rows, strict=True)
    return [""] * len(rows), list(chosen), list(rejected), list(of)


def test_pairs_tell_users_apart_too():
    model = PersonalRewardModel(GROUPS, **FIXED).fit_pairs(*chosen_by(("ann", "bob")))
    new = texts(30, seed=5)
    for user in ("ann", "bob"):
        said = model.scores([""] * 30, new, [user] * 30)
        assert correlation(said, [opinion(text, user) for text in new]) > 0.9
    prompts, chosen, rejected, _ = chosen_by(("dora",), 20)
    model.add_user_pairs("dora", prompts, chosen, rejected)
    said = model.scores([""] * 30, new, ["dora"] * 30)
    assert correlation(said, [opinion(text, "dora") for text in new]) > 0.8
    with pytest.raises(ValueError, match="add_user_pairs"):
        model.add_user("eve", [""], ["loud"], [1.0])


# ---- files


def test_what_is_saved_and_loaded_says_the_same(model, tmp_path):
    model.save(tmp_path / "saved")
    loaded = PersonalRewardModel.load(tmp_path / "saved")
    new, users = texts(20, seed=5), ["ann", "bob", None, "eve"] * 5
    assert np.array_equal(loaded.scores([""] * 20, new, users), model.scores([""] * 20, new, users))
    assert loaded.facts() == model.facts()
    assert loaded.add_user("fay", [""], ["loud"], [3.0]) == pytest.approx(model.add_user("fay", [""], ["loud"], [3.0]))


def test_a_folder_without_a_model_and_files_that_do_not_belong_together(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="personal_reward.json"):
        PersonalRewardModel.load(tmp_path)
    saved = model.save(tmp_path / "one")
    two = PersonalRewardModel(GROUPS[:2], **FIXED).fit_ratings(*rated()).save(tmp_path / "two")
    (two / "personal_reward.safetensors").replace(saved / "personal_reward.safetensors")
    with pytest.raises(ValueError, match="do not belong together"):
        PersonalRewardModel.load(saved)
    file = saved / "personal_reward.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match="format 99"):
        PersonalRewardModel.load(saved)


@dataclass(frozen=True)
class Loudness(FeatureGroup):
    """A group of features that is not the project's."""

    @property
    def features(self):
        return (Feature("loudness", "times it is loud", "times"), Feature("goodness", "times it is good", "times"))

    def values(self, reading):
        return reading.words.count("loud"), reading.words.count("good")


def test_features_of_others_are_imported_only_if_they_are_trusted(tmp_path):
    PersonalRewardModel([Loudness()], **FIXED).fit_ratings(*rated()).save(tmp_path)
    with pytest.raises(ValueError, match="trust=True"):
        PersonalRewardModel.load(tmp_path)
    assert PersonalRewardModel.load(tmp_path, trust=True).users == list(TASTES)


# ---- mistakes


def test_a_value_beyond_those_of_training_counts_as_the_most_there_was(model):
    assert model.scores([""], ["loud " * 6], ["ann"]) == pytest.approx(model.scores([""], ["loud " * 600], ["ann"]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([""], ["loud"], [1.0], ["ann"]), "rows of 1 users .ann."),
        (([""] * 2, ["loud"] * 2, [1.0, 2.0], [None, None]), "rows of 0 users"),
        (([""] * 2, ["loud", "red"], [1.0, 1.0], ["ann", "bob"]), "not the same for all"),
        (([""] * 2, ["loud", "red"], [1.0, math.nan], ["ann", "bob"]), "not finite"),
        (([""] * 2, ["loud", "red"], [1.0], ["ann", "bob"]), "Give one for each"),
        (([""], ["loud", "red"], [1.0, 2.0], ["ann", "bob"]), "1 prompts"),
        (([""] * 2, ["loud", "red"], [1.0, 2.0], ["ann"]), "1 users"),
        (([""] * 2, ["loud", "red"], [1.0, 2.0], ["ann", "bob"], [1.0]), "1 mean ratings"),
    ],
)
def test_columns_that_cannot_be_fitted(columns, message):
    with pytest.raises(ValueError, match=message):
        PersonalRewardModel(GROUPS).fit_ratings(*columns)


def test_mistakes_in_settings_and_calls(model):
    for wrong in ({"rank": 0}, {"shared_penalty": 0.0}, {"taste_penalty": math.inf}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PersonalRewardModel(GROUPS, **wrong)
    with pytest.raises(ValueError, match="sparse"):
        PersonalRewardModel([BagOfWords(min_texts=1, vocabulary=())]).fit_ratings(*rated())
    with pytest.raises(ValueError, match="not been fitted"):
        PersonalRewardModel(GROUPS).scores([""], ["loud"])
    with pytest.raises(ValueError, match="2 users and 1 texts"):
        model.scores([""], ["loud"], ["ann", "bob"])
    with pytest.raises(ValueError, match="'eve' is not known"):
        model.taste("eve")
    with pytest.raises(ValueError, match="give a name"):
        model.add_user(None, [""], ["loud"], [1.0])
    with pytest.raises(ValueError, match="0 rows"):
        model.add_user("eve", [], [], [])
    with pytest.raises(ValueError, match="features of both texts are the same"):
        PersonalRewardModel(GROUPS).fit_pairs([""] * 2, ["loud"] * 2, ["loud"] * 2, ["ann", "bob"])
