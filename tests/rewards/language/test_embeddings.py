import json
import pickle

import pytest
import torch

from rlhf_recipes.modeling.embedder import Embedder
from rlhf_recipes.rewards import EmbeddingDistance, EmbeddingSimilarity, RewardError, WeightedSum
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

TEXTS = ["The film is good.", "A dull script and a tired cast make this a long evening", "!", "今天 😀 great"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer("bert")


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return tiny_classifier(tokenizer).bert.eval()


def states_of(encoder, tokenizer, text):
    with torch.no_grad():
        return encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]


def vector(encoder, tokenizer, text):
    mean = states_of(encoder, tokenizer, text).mean(dim=0)
    return mean / mean.norm()


def cosine(encoder, tokenizer, first, second):
    return float(vector(encoder, tokenizer, first) @ vector(encoder, tokenizer, second))


class FixedEmbeddings:
    """Stands in for an embedder: vectors in a plane, at the angles given."""

    def __init__(self, **angles):
        self.angles = angles
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        radians = torch.tensor([self.angles[text] for text in texts]).deg2rad()
        return torch.stack([radians.cos(), radians.sin()], dim=1)


@pytest.fixture
def similarity(encoder, tokenizer):
    reward = EmbeddingSimilarity(encoder, processing_class=tokenizer)
    reward.embedder = FixedEmbeddings(a=0.0, b=60.0, c=90.0, d=180.0)
    return reward


def test_a_text_is_the_normalized_mean_of_its_tokens(encoder, tokenizer):
    expected = torch.stack([vector(encoder, tokenizer, text) for text in TEXTS])
    vectors = Embedder(encoder, tokenizer)(TEXTS)
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    assert vectors.norm(dim=1).tolist() == pytest.approx([1.0] * 4)
    first = torch.stack([states_of(encoder, tokenizer, text)[0] for text in TEXTS])
    expected = first / first.norm(dim=1, keepdim=True)
    torch.testing.assert_close(Embedder(encoder, tokenizer, pooling="cls")(TEXTS), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_padding_and_batches_change_nothing(encoder, tokenizer, batch_size):
    alone = torch.cat([Embedder(encoder, tokenizer)([text]) for text in TEXTS])
    torch.testing.assert_close(Embedder(encoder, tokenizer, batch_size)(TEXTS), alone, atol=1e-5, rtol=0)


def test_equal_texts_are_encoded_once(encoder, tokenizer):
    embedder = Embedder(encoder, tokenizer, batch_size=1)
    seen = []
    hook = encoder.register_forward_hook(lambda *call: seen.append(call))
    vectors = embedder(["a film", "a plot", "a film", "a film"])
    hook.remove()
    assert len(seen) == 2
    assert torch.equal(vectors[0], vectors[3])
    assert embedder([]).shape == (0, 32)


def test_pooling_and_length_are_read_from_the_folder(tmp_path, encoder, tokenizer):
    folder = save_tiny(tmp_path / "encoder", encoder, tokenizer)
    assert (Embedder(folder).pooling, Embedder(folder).reader.max_length) == ("mean", 256)
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    pooling.write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    embedder = Embedder(folder)
    assert (embedder.pooling, embedder.reader.max_length) == ("cls", 5)
    # [CLS], three tokens and [SEP]: a long text loses its end.
    start = tokenizer.decode(tokenizer("Nobody could save", add_special_tokens=False).input_ids[:3])
    torch.testing.assert_close(embedder([start + " a plot" * 5000]), embedder([start]), atol=1e-5, rtol=0)
    for config, words in (
        ({"pooling_mode_max_tokens": True}, "asks for pooling_mode_max_tokens"),
        ({"pooling_mode": "lasttoken"}, "asks for pooling_mode_lasttoken"),
    ):
        pooling.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=words):
            Embedder(folder)
        assert Embedder(folder, pooling="mean").pooling == "mean"


def test_the_similarity_is_the_cosine_with_the_reference(similarity):
    said = similarity(["", "", "", ""], ["a", "a", "b", "a"], reference=["a", "b", "c", "d"])
    assert said == pytest.approx([1.0, 0.5, 3**0.5 / 2, -1.0], abs=1e-6)


def test_of_several_references_the_nearest_counts(similarity):
    said = similarity(["", ""], ["a", "b"], reference=[["d", "b"], ["a", None, "c", " "]])
    assert said == pytest.approx([0.5, 3**0.5 / 2], abs=1e-6)


def test_similarity_to_the_prompt(encoder, tokenizer):
    reward = EmbeddingSimilarity(encoder, to="prompt", processing_class=tokenizer)
    prompt = [{"role": "user", "content": "a"}]
    reward.embedder = FixedEmbeddings(a=0.0, b=60.0)
    assert reward(["a", prompt, ""], ["b", "b", "b"]) == [pytest.approx(0.5), pytest.approx(0.5), None]


def test_where_there_is_nothing_to_compare_it_does_not_apply(similarity):
    completions = ["", "a", "a", "a", "a"]
    references = [None, None, [], " ", [None, ""]]
    assert similarity([""] * 5, completions, reference=references) == [None] * 5
    # Nothing to see is the worst answer where there is one.
    assert similarity([""] * 3, ["", " \n", "\u200b"], reference=["a"] * 3) == [-1.0] * 3
    assert similarity.embedder.asked == []
    assert similarity([], [], reference=[]) == []


def test_any_text_has_a_similarity(encoder, tokenizer):
    reward = EmbeddingSimilarity(encoder, processing_class=tokenizer)
    texts = ["...", "今天 is 😀 день", "x " * 10_000]
    said = reward([""] * 3, texts, reference=["The film is good."] * 3)
    assert said[:2] == pytest.approx([cosine(encoder, tokenizer, t, "The film is good.") for t in texts[:2]], abs=1e-5)
    assert -1.0 <= said[2] <= 1.0
    assert reward([""] * 3, texts, reference=texts) == pytest.approx([1.0] * 3, abs=1e-5)


def test_a_column_that_is_missing_is_named(encoder, tokenizer):
    reward = EmbeddingSimilarity(encoder, column="answer", processing_class=tokenizer)
    with pytest.raises(ValueError, match="reads the column 'answer', which the dataset lacks. It has label"):
        reward(["a"], ["b"], label=[1])


def test_the_distance_is_that_to_the_siblings(encoder, tokenizer):
    reward = EmbeddingDistance(encoder, processing_class=tokenizer)
    reward.embedder = FixedEmbeddings(a=0.0, b=60.0, c=90.0, d=180.0)
    # p: a, b and d, with cosines 0.5 (a, b), -1 (a, d) and -0.5 (b, d); q: a twice; r: alone.
    said = reward(["p", "q", "p", "r", "q", "p"], ["a", "a", "b", "c", "a", "d"])
    assert said == [pytest.approx(v, abs=1e-6) for v in (1.25, 0.0, 1.0)] + [None] + [
        pytest.approx(v, abs=1e-6) for v in (0.0, 1.75)
    ]


def test_siblings_without_a_text_are_left_out(encoder, tokenizer):
    reward = EmbeddingDistance(encoder, processing_class=tokenizer)
    reward.embedder = FixedEmbeddings(a=0.0, b=60.0)
    assert reward(["p"] * 3, ["a", "", "b"]) == [pytest.approx(0.5), 0.0, pytest.approx(0.5)]
    assert reward(["p", "p", "q"], ["a", " ", ""]) == [1.0, 0.0, None]


def test_a_row_has_the_same_value_whatever_else_is_in_the_batch(encoder, tokenizer):
    nearness = EmbeddingSimilarity(encoder, processing_class=tokenizer)
    together = nearness([""] * 4, TEXTS, reference=TEXTS[::-1])
    alone = [nearness([""], [a], reference=[b])[0] for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(
        [cosine(encoder, tokenizer, a, b) for a, b in zip(TEXTS, TEXTS[::-1], strict=True)], abs=1e-5
    )
    distance = EmbeddingDistance(encoder, processing_class=tokenizer, batch_size=2)
    pair = distance(["p", "p"], TEXTS[:2])
    assert distance(["q", "p", "q", "p"], [TEXTS[2], TEXTS[0], TEXTS[3], TEXTS[1]])[1::2] == pytest.approx(
        pair, abs=1e-5
    )


def test_a_model_that_gives_nan_is_named(tokenizer):
    broken = tiny_classifier(tokenizer).bert
    torch.nn.init.constant_(broken.encoder.layer[1].output.dense.weight, float("nan"))
    reward = EmbeddingSimilarity(broken, processing_class=tokenizer, name="meaning")
    with pytest.raises(RewardError, match="'meaning' gave nan, for row 1"):
        reward(["", ""], ["", "b"], reference=["a", ["b", "c"]])
    with pytest.raises(RewardError, match="'EmbeddingDistance' gave nan, for row 0"):
        EmbeddingDistance(broken, processing_class=tokenizer)(["", ""], ["a", "b"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"to": "title"}, "to of EmbeddingSimilarity is 'title'; it must be one of reference, prompt"),
        ({"to": "prompt", "column": "answer"}, "reads no column, but column is 'answer'"),
        ({"pooling": "max"}, "pooling is 'max'; give one of mean, cls"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 300}, "max_length is 300, but must be from 1 to 256"),
    ],
)
def test_settings_that_cannot_be_are_refused(encoder, tokenizer, settings, words):
    with pytest.raises(ValueError, match=words):
        EmbeddingSimilarity(encoder, processing_class=tokenizer, **settings)


def test_they_survive_pickling_and_are_weighed_in_a_sum(tmp_path, encoder, tokenizer):
    folder = save_tiny(tmp_path / "encoder", encoder, tokenizer)
    rewards = [EmbeddingSimilarity(folder, name="meaning"), EmbeddingDistance(str(folder), batch_size=2)]
    batch = {"prompts": ["p"] * 4, "completions": TEXTS, "completion_ids": [[1]] * 4, "reference": TEXTS[::-1]}
    expected = [reward(**batch) for reward in rewards]
    pickled = pickle.dumps(rewards)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    assert [reward.__name__ for reward in again] == ["meaning", "EmbeddingDistance"]
    for reward, values in zip(again, expected, strict=True):
        assert reward(**batch) == pytest.approx(values, abs=1e-6)
    total = WeightedSum(rewards, [1.0, 0.5])(**batch)
    assert total == pytest.approx([a + 0.5 * b for a, b in zip(*expected, strict=True)], abs=1e-5)
