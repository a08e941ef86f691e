import itertools
import math
import pickle
import random

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rlhf_recipes.ppo import functional as F
from rlhf_recipes.rewards import KeywordCoverage, LearnedReward, RewardError, WeightedSum
from rlhf_recipes.rewards.loading import load_reward
from rlhf_recipes.rewards.shaping import KeywordProgress, PrefixScore, prefix_texts
from rlhf_recipes.words import words
from tests.ppo.helpers import OPENINGS, many_short_tokens, trainer
from tests.ppo.helpers import TOKENIZER as POLICY_TOKENIZER
from tests.tiny import SENTENCES, save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

TOKENIZER = tiny_tokenizer(vocab_size=1000)  # which has whole words
EOS = TOKENIZER.eos_token_id


def tokens(*texts):
    """Ids of texts, one token each."""
    ids = [TOKENIZER(text).input_ids for text in texts]
    assert all(len(one) == 1 for one in ids), list(map(TOKENIZER.convert_ids_to_tokens, ids))
    return [one[0] for one in ids]


FILM, MUSIC, THE = tokens(" film", " music", " the")
LETTER_S, STOP = tokens("s", ".")


def rows_of(*completion_ids, **columns):
    texts = TOKENIZER.batch_decode(list(completion_ids), skip_special_tokens=True)
    prompts = [f"Row {row}:" for row in range(len(texts))]
    return {"prompts": prompts, "completions": texts, "completion_ids": list(completion_ids), **columns}


def progress(*keywords, **settings):
    return KeywordProgress(keywords=list(keywords), tokenizer=TOKENIZER, **settings)


# --- Texts of prefixes --------------------------------------------------------------------------


def byte_fallback_tokenizer():
    """As Llama 2's: words that begin with a mark for their space, which the first one loses, and single bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁film", "s", "▁good", ".", "▁"]
    backend = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def word_piece_tokenizer(tidy):
    pieces = ["[UNK]", "film", "##s", "good", ".", ",", "'", "t", "##t", "a"]
    backend = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=tidy)


TOKENIZERS = {
    "bytes": TOKENIZER,
    "byte fallback": byte_fallback_tokenizer(),
    "word pieces": word_piece_tokenizer(False),
    "tidied spaces": word_piece_tokenizer(True),
}


def drawn(name, draws):
    """About 100 tokens at random; those of byte fallback make words and emoji, one or two in a row."""
    tokenizer = TOKENIZERS[name]
    if name != "byte fallback":
        return [draws.randrange(len(tokenizer)) for _ in range(100)]
    emoji = [1 + byte for byte in "👍".encode()]
    units = [*([piece] for piece in range(257, len(tokenizer))), emoji, [*emoji, *emoji]]
    return [token for unit in draws.choices(units, k=60) for token in unit]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_of_prefixes_are_those_of_decoding_each(name):
    tokenizer, draws = TOKENIZERS[name], random.Random(0)
    for _ in range(20):
        ids = drawn(name, draws)
        decoded = [tokenizer.decode(ids[:count], skip_special_tokens=True) for count in range(len(ids))]
        texts, settled = zip(*prefix_texts(ids, tokenizer), strict=True)
        assert list(texts) == [text.rstrip("\ufffd") for text in decoded]
        # Most of a long text is settled, where it can be known: the work does not grow with the square of its length.
        assert (max(settled) > len(texts[-1]) / 2) == (name != "tidied spaces")


def test_a_character_is_there_when_all_its_bytes_are():
    ids = TOKENIZER("a👍b").input_ids
    assert len(ids) == 6  # the emoji has four bytes
    assert [text for text, _ in prefix_texts(ids, TOKENIZER)] == ["", "a", "a", "a", "a", "a👍"]


# --- Keywords -----------------------------------------------------------------------------------


def test_phi_is_the_share_of_keywords_before_each_token():
    # " film", " music", "s", ".", the end: "film" is found with the first token, "music" with the second, until an
    # "s" makes another word of it. The last token is chosen in the state before it.
    reward = progress("film", "Music", "nobody")
    assert reward(**rows_of([FILM, MUSIC, LETTER_S, STOP, EOS])) == [pytest.approx([0, 1 / 3, 2 / 3, 1 / 3, 1 / 3])]
    assert reward(**rows_of([FILM], [EOS], [])) == [[0.0], [0.0], []]


def test_a_phrase_is_found_with_its_last_word():
    reward = progress("film music", "the music")
    ids = [THE, MUSIC, STOP, FILM, STOP, MUSIC, EOS]  # " the music. film. music"
    assert reward(**rows_of(ids)) == [[0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 1.0]]


def test_phi_agrees_with_keyword_coverage_of_every_prefix():
    keywords = ["film", "two brothers", "a", "映画", "good", "THE", "straße", "was good"]
    text = " ".join(SENTENCES) + " 静かな映画。とても良い 👍🏽 naïve STRASSE\n"
    draws = random.Random(1)
    noise = [draws.randrange(len(TOKENIZER)) for _ in range(300)]
    for ids in (TOKENIZER(text).input_ids, TOKENIZER(text.replace(" ", "")).input_ids, noise):
        prefixes = [TOKENIZER.decode(ids[:count], skip_special_tokens=True) for count in range(len(ids))]
        expected = KeywordCoverage(keywords=keywords)(completions=[text.rstrip("\ufffd") for text in prefixes])
        assert progress(*keywords)(**rows_of(ids)) == [expected]


def test_a_phrase_is_found_wherever_it_stands_in_a_long_text():
    for before in range(45):
        ids = [THE] * before + [FILM, MUSIC] + [STOP, THE] * 20
        (phi,) = progress("film music", "nobody")(**rows_of(ids))
        assert phi == [0.0] * (before + 2) + [0.5] * 40


def test_a_keyword_is_lost_where_later_bytes_undo_it():
    """With byte fallback, a character of bytes right after another one hides both until it is complete."""
    tokenizer, draws = TOKENIZERS["byte fallback"], random.Random(2)
    keywords = ["👍", "films", "a good"]
    reward = KeywordProgress(keywords=keywords, tokenizer=tokenizer)
    emoji = [1 + byte for byte in "👍".encode()]
    for ids in (emoji * 2, *(drawn("byte fallback", draws) for _ in range(20)), [257] * 40 + emoji * 2 + [257] * 40):
        prefixes = [tokenizer.decode(ids[:count]).rstrip("\ufffd") for count in range(len(ids))]
        expected = KeywordCoverage(keywords=keywords)(completions=prefixes)
        assert reward(completions=["?"], completion_ids=[ids]) == [expected]
    assert reward(completions=["?"], completion_ids=[emoji * 2]) == [[0.0] * 4 + [1 / 3] + [0.0] * 3]


class Erasing:
    """A tokenizer of the words " good" and " film", and of a token 9 that takes back all text before it."""

    def decode(self, ids, skip_special_tokens):
        for place in range(len(ids) - 1, -1, -1):
            if ids[place] == 9:
                return self.decode(ids[place + 1 :], skip_special_tokens)
        return "".join(" film" if token else " good" for token in ids)


def test_text_that_was_read_is_forgotten_where_a_token_takes_it_back():
    ids = [1] + [0] * 40 + [9] + [0] * 40
    (phi,) = KeywordProgress(keywords=["film"], tokenizer=Erasing())(completions=["?"], completion_ids=[ids])
    assert phi == [0.0] + [1.0] * 41 + [0.0] * 40


def test_keywords_of_a_column():
    ids = [FILM, MUSIC, EOS]
    own = [["film", "music"], "film", None, [], "?!", "music, nobody"]
    rows = rows_of(*[ids] * 6, keywords=own)
    reward = KeywordProgress(column="keywords", tokenizer=TOKENIZER)
    assert reward(**rows) == [[0.0, 0.5, 1.0], [0.0, 1.0, 1.0], None, None, None, [0.0, 0.0, 0.0]]
    apart = KeywordProgress(column="keywords", separator=",", tokenizer=TOKENIZER)
    assert apart(**rows)[5] == [0.0, 0.0, 0.5]
    both = KeywordProgress(keywords=["film"], column="keywords", tokenizer=TOKENIZER)
    assert both(**rows)[:3] == [[0.0, 0.5, 1.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]


def test_a_keyword_that_is_named_twice_counts_once():
    assert progress("film", "FILM", "music")(**rows_of([FILM, EOS])) == [[0.0, 0.5]]


def test_keywords_in_10000_tokens():
    ids = (TOKENIZER(" ".join(SENTENCES)).input_ids * 200)[:10_000]
    (phi,) = progress("film", "picture", "nobody")(**rows_of(ids))
    assert len(phi) == 10_000
    assert phi[0] == 0.0
    assert phi[-1] == 1.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keywords": ["a"], "tokenizer": None}, "KeywordProgress reads unfinished completions.* as tokenizer"),
        ({}, "nothing to look for: give keywords, column or both"),
        ({"keywords": []}, "nothing to look for"),
        ({"keywords": "film"}, "takes keywords as a list, but was given 'film'"),
        ({"keywords": ["film", "?!"]}, r"The keyword '\?!' of KeywordProgress has no letter, digit or emoji"),
    ],
)
def test_keywords_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        KeywordProgress(**{"tokenizer": TOKENIZER, **settings})


def test_a_column_that_is_missing_is_named():
    reward = KeywordProgress(column="keywords", tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="reads the column 'keywords', which the dataset lacks. It has topic"):
        reward(**rows_of([FILM], topic=["x"]))


# --- Scores of prefixes -------------------------------------------------------------------------


class Spy:
    """A reward of the number of letters, which remembers what it was given."""

    def __init__(self, **attributes):
        self.calls = []
        self.__dict__.update(attributes)

    def __call__(self, **batch):
        self.calls.append(batch)
        return [float(len(text)) for text in batch["completions"]]


def test_phi_is_the_reward_of_the_text_before_each_token():
    rows = rows_of([FILM, MUSIC, STOP], [EOS], [])
    assert PrefixScore(Spy(), tokenizer=TOKENIZER)(**rows) == [[0.0, 5.0, 11.0], [0.0], []]
    assert PrefixScore(Spy(), scale=-0.5, tokenizer=TOKENIZER)(**rows) == [[0.0, -2.5, -5.5], [0.0], []]


def test_all_prefixes_go_to_the_reward_at_once_with_the_columns_of_their_rows():
    spy = Spy()
    rows = rows_of([FILM, MUSIC], [THE], topic=["x", "y"], trainer_state="state", log_extra=print, log_metric=print)
    PrefixScore(spy, tokenizer=TOKENIZER)(**rows)
    assert spy.calls == [
        {
            "prompts": ["Row 0:", "Row 0:", "Row 1:"],
            "completions": ["", " film", ""],
            "completion_ids": [[], [FILM], []],
            "topic": ["x", "x", "y"],
            "trainer_state": "state",
        }
    ]


def test_every_few_tokens():
    ids = [FILM, MUSIC, STOP, THE, FILM, EOS, EOS]
    spy = Spy()
    (phi,) = PrefixScore(spy, every=3, tokenizer=TOKENIZER)(**rows_of(ids))
    # "", " film music." and " film music. the film"
    assert phi == [0.0, 0.0, 0.0, 12.0, 12.0, 12.0, 21.0]
    assert spy.calls[0]["completion_ids"] == [[], ids[:3], ids[:6]]
    assert PrefixScore(Spy(), every=100, tokenizer=TOKENIZER)(**rows_of(ids)) == [[0.0] * 7]


def test_where_the_reward_does_not_apply_phi_stays():
    def picky(completions, **kwargs):
        answers = {"": None, " film": None, " film music": 2.0, " film music.": None, " the": 1.0}
        return [answers.get(text) for text in completions]

    reward = PrefixScore(picky, tokenizer=TOKENIZER)
    rows = rows_of([FILM, MUSIC, STOP, EOS], [STOP, STOP], [THE, THE])
    assert reward(**rows) == [[0.0, 0.0, 2.0, 2.0], None, [0.0, 1.0]]


def test_a_reward_that_judges_the_empty_completion_gives_phi_of_the_prompt():
    def of_prompt(prompts, completions, **kwargs):
        return [float(prompt[4]) + len(text) for prompt, text in zip(prompts, completions, strict=True)]

    reward = PrefixScore(of_prompt, tokenizer=TOKENIZER)
    assert reward(**rows_of([FILM, EOS], [EOS], [EOS])) == [[0.0, 5.0], [1.0], [2.0]]


def test_messages_stay_messages():
    spy = Spy()
    rows = rows_of([FILM, EOS]) | {"completions": [[{"role": "assistant", "content": " film"}]]}
    PrefixScore(spy, tokenizer=TOKENIZER)(**rows)
    said = [[{"role": "assistant", "content": text}] for text in ("", " film")]
    assert spy.calls[0]["completions"] == said
    PrefixScore(spy, tokenizer=TOKENIZER)(**rows | {"completions": [[]]})
    assert spy.calls[1]["completions"] == said


def test_the_reward_is_given_what_it_wants():
    plain, wanting = Spy(), Spy(wants_prompt_ids=True, wants_ref_logprobs=True)
    assert not PrefixScore(plain, tokenizer=TOKENIZER).wants_prompt_ids
    reward = PrefixScore(wanting, tokenizer=TOKENIZER)
    assert reward.wants_prompt_ids
    assert reward.wants_ref_logprobs
    assert PrefixScore(Spy(constant=True), tokenizer=TOKENIZER).constant
    assert not reward.constant
    reward(**rows_of([FILM, EOS], [EOS]), prompt_ids=[[5, 6], [7]], ref_logprobs=[[-1.0, -2.0], None])
    assert wanting.calls[0]["prompt_ids"] == [[5, 6], [5, 6], [7]]
    assert wanting.calls[0]["ref_logprobs"] == [[], [-1.0], None]


def test_a_reward_model_reads_each_prefix(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    folder = save_tiny(tmp_path / "judge", tiny_classifier(tokenizer), tokenizer)
    policy = save_tiny(tmp_path / "policy", tiny_causal_lm(TOKENIZER), TOKENIZER)
    reward = PrefixScore({"func": str(folder), "args": {"device": "cpu"}}, tokenizer=str(policy))
    ids = TOKENIZER(" good music, and a tired cast").input_ids
    rows = rows_of(ids, ids[:2])
    judge = LearnedReward(folder)
    expected = [judge(["Row 0:"], [TOKENIZER.decode(ids[:count])])[0] for count in range(len(ids))]
    phi = reward(**rows)
    assert phi[0] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1
    assert len(phi[1]) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokenizer": None}, "PrefixScore reads unfinished completions"),
        ({"every": 0}, "every of PrefixScore is 0; it must be 1 or more, and a whole number"),
        ({"every": 1.5}, "every of PrefixScore is 1.5"),
        ({"scale": math.nan}, "scale of PrefixScore is nan; it must be a finite number"),
        ({"scale": "2"}, "scale of PrefixScore is '2'"),
        ({"reward": "Vadre"}, "There is no reward 'Vadre'; did you mean 'Vader'"),
        ({"reward": {"func": "Vader", "weight": 2.0}}, "describes the reward of PrefixScore has weight"),
        ({"reward": Spy(per_token=True, __name__="steps")}, "'steps' gives one number for each token, but the reward"),
    ],
)
def test_scores_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        PrefixScore(**{"reward": Spy(), "tokenizer": TOKENIZER, **settings})


def test_a_tokenizer_that_is_not_there_is_told_at_once():
    with pytest.raises(FileNotFoundError, match=r"No model at './nowhere'"):
        PrefixScore(Spy(), tokenizer="./nowhere")


def test_a_reward_that_says_nan_is_named():
    def broken(completions, **kwargs):
        return [math.nan if text else 0.0 for text in completions]

    with pytest.raises(
        RewardError, match=r"Reward 'broken' returned nan, for row 1 \(prompt 'Row 0:', comp.* ' film'"
    ):
        PrefixScore(broken, tokenizer=TOKENIZER)(**rows_of([FILM, EOS]))


# --- Both ---------------------------------------------------------------------------------------

BOTH = [
    progress("film", "music"),
    KeywordProgress(keywords=["music"], column="own", tokenizer=TOKENIZER, name="own"),
    PrefixScore({"func": "Vader"}, tokenizer=TOKENIZER),
    PrefixScore({"func": "EndsWithSentence"}, every=2, scale=2.0, tokenizer=TOKENIZER, name="ends"),
]
ROWS = rows_of(
    [FILM, MUSIC, STOP, EOS],
    [],
    [EOS],
    TOKENIZER("?!...").input_ids,
    TOKENIZER("a bad film, 静かな 👍🏽 music مرحبا").input_ids,
    [FILM, MUSIC, LETTER_S, STOP],
    own=[["film"], None, "film", [], "静", ["music"]],
)


@pytest.mark.parametrize("reward", BOTH, ids=lambda reward: reward.__name__)
def test_a_potential_is_of_its_own_row_and_survives_pickling(reward):
    values = reward(**ROWS)
    assert [len(phi) for phi in values] == [len(ids) for ids in ROWS["completion_ids"]]
    assert any(len(set(phi)) > 1 for phi in values)
    assert pickle.loads(pickle.dumps(reward))(**ROWS) == values
    for row, phi in enumerate(values):
        assert reward(**{key: column[row : row + 1] for key, column in ROWS.items()}) == [phi]


@pytest.mark.parametrize("reward", BOTH, ids=lambda reward: reward.__name__)
def test_a_potential_knows_nothing_of_what_comes(reward):
    rows = rows_of([FILM, MUSIC, LETTER_S, STOP, EOS], [FILM, MUSIC, STOP, THE, FILM], own=[["film"]] * 2)
    rows["prompts"] = ["The same"] * 2
    one, other = reward(**rows)
    assert one[:3] == other[:3]  # before the third token both are " film music"


@pytest.mark.parametrize("reward", BOTH, ids=lambda reward: reward.__name__)
def test_a_potential_is_kept_apart_from_scores_in_a_sum(reward):
    both = WeightedSum([many_short_tokens, reward], weights=[1.0, 0.5])
    rows = {key: [column[0]] for key, column in ROWS.items()}
    parts = both.parts(**rows)
    assert both.combine(parts) == many_short_tokens(rows["completion_ids"])
    assert both.combine_potentials(parts, rows["completion_ids"]) == [[0.5 * phi for phi in reward(**rows)[0]]]
    assert both.combine_tokens(parts, rows["completion_ids"]) is None


def test_potentials_out_of_a_file(tmp_path):
    folder = str(save_tiny(tmp_path / "policy", tiny_causal_lm(TOKENIZER), TOKENIZER))
    found = load_reward(
        "rlhf_recipes.rewards.shaping.KeywordProgress", "words", {"keywords": ["film"], "tokenizer": folder}
    )
    assert (found.per_token, found.potential, found.__name__) == (True, True, "words")
    assert found(**rows_of([FILM, EOS])) == [[0.0, 1.0]]
    assert len(pickle.dumps(found)) < 1000
    again = load_reward("rlhf_recipes.rewards.shaping.PrefixScore", None, {"reward": "Vader", "tokenizer": folder})
    assert (again.per_token, again.potential, again.__name__) == (True, True, "PrefixScore")


# --- Shaping with them --------------------------------------------------------------------------


def shaped(reward, rows, gamma):
    """What the trainer pays with each token."""
    phi = reward(**rows)
    width = max(map(len, phi))
    potentials = torch.tensor([row + [math.nan] * (width - len(row)) for row in phi], dtype=torch.float64)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in phi])
    return [row[: len(own)] for row, own in zip(F.shaping_rewards(potentials, mask, gamma).tolist(), phi, strict=True)]


def test_what_is_paid_for_keywords_by_hand():
    rows = rows_of([FILM, MUSIC, LETTER_S, EOS], [EOS])  # Phi: 0, 1/2, 1, 1/2; 0
    paid = shaped(progress("film", "music"), rows, gamma=1.0)
    assert paid == [[0.5, 0.5, -0.5, -0.5], [0.0]]
    assert sum(paid[0]) == 0.0  # Phi(s_0) is 0
    paid = shaped(progress("film", "music"), rows, gamma=0.5)
    # 0.5 * 0.5 - 0, 0.5 * 1 - 0.5, 0.5 * 0.5 - 1, 0 - 0.5
    assert paid == [[0.25, 0.0, -0.75, -0.5], [0.0]]
    assert 0.25 + 0.5 * 0.0 + 0.25 * -0.75 + 0.125 * -0.5 == 0.0


def test_what_is_paid_for_scores_of_prefixes_by_hand():
    def rest(completions, **kwargs):
        return [3.0 - len(text.split()) for text in completions]

    rows = rows_of([FILM, MUSIC, EOS], [FILM, EOS])  # Phi: 3, 2, 1; 3, 2
    reward = PrefixScore(rest, tokenizer=TOKENIZER)
    assert shaped(reward, rows, gamma=1.0) == [[-1.0, -1.0, -1.0], [-1.0, -2.0]]  # both add up to -Phi(s_0) = -3
    assert shaped(reward, rows, gamma=0.5) == [[-2.0, -1.5, -1.0], [-2.0, -2.0]]
    assert -2.0 + 0.5 * -1.5 + 0.25 * -1.0 == -2.0 + 0.5 * -2.0 == -3.0


# A task small enough to list: up to 3 tokens out of four, and the end comes by itself. Each of them costs a little,
# and the second "film" a lot, so that the best is to say "music" and stop. Keywords are what shaping would like.
ACTIONS = (EOS, FILM, MUSIC, THE)
DEPTH = 3


def is_over(state):
    return len(state) == DEPTH or (state and state[-1] == EOS)


STATES = [
    state for depth in range(DEPTH) for state in itertools.product(ACTIONS, repeat=depth) if EOS not in state
]  # in which a token is chosen: 1 + 3 + 9
WHOLE = [(*state, token) for state in STATES for token in ACTIONS if is_over((*state, token))]


def score(whole):
    said = [token for token in whole if token != EOS]
    return (0.3 if MUSIC in said else 0.0) - 0.1 * len(said) - 0.5 * (said.count(FILM) > 1)


def rewards_of_the_task(reward=None, gamma=1.0):
    """What each token earns in each state: the score with the last one, and the shaping."""
    paid = {(*state, token): 0.0 for state in STATES for token in ACTIONS}
    for whole in WHOLE:
        paid[whole] = score(whole)
    if reward is not None:
        rows = rows_of(*map(list, WHOLE)) | {"prompts": ["The prompt"] * len(WHOLE)}
        added = {}
        for whole, row in zip(WHOLE, shaped(reward, rows, gamma), strict=True):
            for place, value in enumerate(row):
                # A token earns the same in every completion that begins so, or there would be no such task.
                assert added.setdefault(whole[: place + 1], value) == pytest.approx(value, abs=1e-12)
        paid = {path: paid[path] + added[path] for path in paid}
    return paid


def action_values(paid, gamma, policy):
    """Q of each state and token, from the last state back; `policy` makes a state's value of its tokens' values."""
    values = {}
    for state in reversed(STATES):
        for token in ACTIONS:
            path = (*state, token)
            follow = 0.0 if is_over(path) else policy(path, [values[(*path, after)] for after in ACTIONS])
            values[path] = paid[path] + gamma * follow
    return values


def best(_, values):
    return max(values)


def greedy(values):
    return {state: max(ACTIONS, key=lambda token: values[(*state, token)]) for state in STATES}


def played(policy):
    state = ()
    while not is_over(state):
        state = (*state, policy[state])
    return state


def stochastic(seed):
    draws = random.Random(seed)
    chances = {state: [draws.random() for _ in ACTIONS] for state in STATES}
    return lambda state, values: sum(p * v for p, v in zip(chances[state], values, strict=True)) / sum(chances[state])


def start_values(paid, gamma):
    """What the prompt is worth to each policy without chance: as much as the one completion that it plays."""
    return [sum(gamma**t * paid[whole[: t + 1]] for t in range(len(whole))) for whole in WHOLE]


def letters(completions, **kwargs):
    """A bad guess of what a completion will earn: the more text the better, and something for the prompt."""
    return [2.0 + len(text) for text in completions]


POTENTIALS = [
    progress("film", "the film"),
    PrefixScore(letters, tokenizer=TOKENIZER),
    PrefixScore(letters, every=2, scale=-3.0, tokenizer=TOKENIZER),
]
PHI_OF_THE_PROMPT = [0.0, 2.0, -6.0]


def test_the_task_has_one_best_policy():
    assert len(STATES) == 1 + 3 + 9
    assert len(WHOLE) == 1 + 3 + 9 * 4
    values = action_values(rewards_of_the_task(), 1.0, best)
    assert values[(MUSIC,)] == pytest.approx(0.2)
    assert played(greedy(values)) == (MUSIC, EOS)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize(("reward", "phi"), list(zip(POTENTIALS, PHI_OF_THE_PROMPT, strict=True)))
def test_shaping_changes_neither_the_best_policy_nor_any_advantage(reward, phi, gamma):
    plain, with_shaping = rewards_of_the_task(), rewards_of_the_task(reward, gamma)
    assert max(abs(with_shaping[path] - plain[path]) for path in plain) > 0.4  # it does pay something
    one, other = (action_values(paid, gamma, best) for paid in (plain, with_shaping))
    assert greedy(one) == greedy(other)
    for policy in (best, *map(stochastic, range(20))):
        one, other = (action_values(paid, gamma, policy) for paid in (plain, with_shaping))
        for state in STATES:
            advantages, shaped_advantages = (
                [values[(*state, token)] - policy(state, [values[(*state, after)] for after in ACTIONS])
                 for token in ACTIONS]
                for values in (one, other)
            )  # fmt: skip
            assert shaped_advantages == pytest.approx(advantages, abs=1e-9)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize(("reward", "phi"), list(zip(POTENTIALS, PHI_OF_THE_PROMPT, strict=True)))
def test_shaping_takes_phi_of_the_prompt_from_every_policy(reward, phi, gamma):
    plain = start_values(rewards_of_the_task(), gamma)
    assert max(plain) - min(plain) > 0.5
    with_shaping = start_values(rewards_of_the_task(reward, gamma), gamma)
    # All lose the same, so that they stay in order; one that leaves something to chance is an average of them.
    assert with_shaping == pytest.approx([value - phi for value in plain], abs=1e-9)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("reward", POTENTIALS[:2], ids=lambda reward: reward.__name__)
def test_a_potential_left_over_at_the_end_changes_the_best_policy(reward, gamma):
    """Paying `gamma * Phi(s') - Phi(s)` with the last token too: a mistake, which pays for the keywords."""
    paid = rewards_of_the_task(reward, gamma)
    # One token more, so that the state after the last is among those with a Phi.
    rows = rows_of(*(list(whole) + [EOS] for whole in WHOLE)) | {"prompts": ["The prompt"] * len(WHOLE)}
    wrong = dict(paid)
    for whole, phi in zip(WHOLE, reward(**rows), strict=True):
        wrong[whole] += gamma * phi[len(whole)]
    plain = rewards_of_the_task()
    values, wrong_values = (action_values(given, gamma, best) for given in (plain, wrong))
    assert played(greedy(values)) == (MUSIC, EOS)
    assert played(greedy(wrong_values)) != (MUSIC, EOS)
    earned, wrongly_earned = (start_values(given, gamma) for given in (plain, wrong))
    assert WHOLE[earned.index(max(earned))] == (MUSIC, EOS)
    assert WHOLE[wrongly_earned.index(max(wrongly_earned))] != (MUSIC, EOS)


# --- In PPO -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_ppo_shapes_with_keywords(tmp_path, gamma):
    options = {"kl_coef": 0.0, "gamma": gamma, "critic": "none", "whiten_advantages": False, "total_episodes": 8,
               "max_completion_length": 12, "stop_token_id": list(range(5, 400, 9))}  # fmt: skip
    plain = trainer(tmp_path / "plain", reward=[many_short_tokens], **options)
    plain.train()
    ids = plain.rollout.completion_ids
    lengths = plain.rollout.mask.sum(dim=1).tolist()
    texts = [
        POLICY_TOKENIZER.decode(row[:length], skip_special_tokens=True)
        for row, length in zip(ids, lengths, strict=True)
    ]
    keywords = [max(said, key=len) for text in texts if (said := words(text))]  # of what is really written
    data = Dataset.from_dict({"prompt": OPENINGS * 2, "keywords": [keywords] * 16})
    reward = KeywordProgress(column="keywords", tokenizer=POLICY_TOKENIZER)
    run = trainer(tmp_path / "shaped", reward=[many_short_tokens, reward], data=data, **options)
    run.train()
    assert torch.equal(run.rollout.completion_ids, ids)  # the first rollout, before anything was learned
    assert torch.equal(run.rollout.scores, plain.rollout.scores)
    found = 0.0
    wanted = KeywordCoverage(keywords=keywords)
    for row, length in enumerate(lengths):
        prefixes = [
            POLICY_TOKENIZER.decode(ids[row, :t], skip_special_tokens=True).rstrip("\ufffd") for t in range(length)
        ]
        phi = torch.tensor(wanted(completions=prefixes))
        torch.testing.assert_close(run.rollout.potentials[row, :length], phi)
        # Everything still to be earned is less by the potential of the state.
        torch.testing.assert_close(run.rollout.returns[row, :length], plain.rollout.returns[row, :length] - phi)
        found = max(found, float(phi.max()))
    assert found > 0


def test_ppo_shapes_with_a_reward_model_and_logs_no_reward_for_it(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    judge = LearnedReward(tiny_classifier(tokenizer), tokenizer, name="judge")
    run = trainer(tmp_path, reward=[judge, PrefixScore(judge, every=2, tokenizer=POLICY_TOKENIZER)])
    run.train()
    (first, *_) = [entry for entry in run.state.log_history if "objective/scores" in entry]
    assert "reward/judge" in first
    assert "reward/PrefixScore" not in first
    assert math.isfinite(first["loss"])
    # Phi of the prompt is what the model says of it alone, and stays for two tokens.
    phi, mask = run.rollout.potentials, run.rollout.mask.bool()
    prompts = POLICY_TOKENIZER.batch_decode(run.rollout.prompt_ids, skip_special_tokens=True)
    assert phi[:, 0].tolist() == pytest.approx(judge(prompts, [""] * len(prompts)), abs=1e-5)
    assert mask[:, 1].any()
    assert torch.equal(phi[:, 1][mask[:, 1]], phi[:, 0][mask[:, 1]])
