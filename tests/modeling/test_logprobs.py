"""Where completions stand in the texts that a model reads, and log-probabilities without all logits at once."""

import pytest
import torch

from rlhf_recipes.modeling.logprobs import completion_logprobs, texts_of
from tests.architectures import tiny_model

# Prompts of 1 and 2 tokens, completions of 2 and 3.
TWO = {
    "prompt_ids": torch.tensor([[0, 0, 5], [0, 6, 7]]),
    "prompt_mask": torch.tensor([[0, 0, 1], [0, 1, 1]]),
    "completion_ids": torch.tensor([[8, 2, 0, 0], [9, 8, 2, 0]]),
    "mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]),
}
GENERATOR = torch.Generator().manual_seed(0)
THREE = {
    "prompt_ids": torch.randint(3, 300, (3, 4), generator=GENERATOR),
    "prompt_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]),
    "completion_ids": torch.randint(3, 300, (3, 6), generator=GENERATOR),
    "mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]),
}


def test_texts_stand_side_by_side_without_padding_before_or_between():
    texts = texts_of(**TWO)
    assert texts.inputs["input_ids"].tolist() == [[5, 8, 2, 0, 0], [6, 7, 9, 8, 2]]
    assert texts.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert texts.inputs["position_ids"][1].tolist() == [0, 1, 2, 3, 4]
    assert texts.ids.tolist() == [8, 2, 9, 8, 2]
    assert texts.rows.tolist() == [0, 0, 1, 1, 1]
    assert texts.places.tolist() == [0, 1, 1, 2, 3]  # the position before each token


def test_untrimmed_they_stand_as_they_were_sampled():
    texts = texts_of(**TWO, trim=False)
    assert texts.inputs["input_ids"].tolist() == [[0, 0, 5, 8, 2, 0, 0], [0, 6, 7, 9, 8, 2, 0]]
    assert texts.places.tolist() == [2, 3, 2, 3, 4]


@pytest.mark.parametrize("trim", [True, False])
def test_what_is_said_of_columns_is_found_at_the_same_tokens_again(trim):
    texts = texts_of(**TWO, trim=trim)
    columns = torch.cat([TWO["prompt_ids"], TWO["completion_ids"]], dim=1)
    arranged = texts.arranged(columns[..., None].float())[..., 0]
    real = texts.inputs["attention_mask"].bool()
    assert torch.equal(arranged[real], texts.inputs["input_ids"][real].float())
    assert torch.equal(texts.spread(texts.ids.float()), (TWO["completion_ids"] * TWO["mask"]).float())
    before = texts.pick(texts.inputs["input_ids"])
    assert before.tolist() == [5, 8, 7, 9, 8]  # the token before each


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "cohere", "minicpm3"])
@pytest.mark.parametrize("head_learns", [False, True])
def test_gradients_of_the_streamed_output_layer_are_those_of_the_plain_forward(name, head_learns):
    """Bounded and scaled logits, and what a layer between body and output layer does, at several chunk sizes."""
    weigh = torch.rand(14, generator=torch.Generator().manual_seed(1))
    read = torch.rand(14, 32, generator=torch.Generator().manual_seed(2))
    found = []
    for options in ({"keep": False, "trim": False}, {"chunk": 100}, {"chunk": 5}):
        model = tiny_model(name).requires_grad_(head_learns)
        trained = model.base_model.layers.requires_grad_(True)
        said = completion_logprobs(model, **THREE, temperature=0.7, **options)
        loss = (weigh * said.logprobs[THREE["mask"].bool()]).sum() + (read * said.hidden).sum()
        loss.backward()
        found.append([said.logprobs, said.entropy, said.hidden, *(p.grad for p in trained.parameters())])
    real = THREE["mask"].bool()
    for other in found[1:]:
        torch.testing.assert_close(other[0][real], found[0][0][real], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other[1][real], found[0][1][real], atol=1e-5, rtol=1e-5)
        for mine, plain in zip(other[2:], found[0][2:], strict=True):
            torch.testing.assert_close(mine, plain, atol=2e-5, rtol=1e-4)


def test_the_streamed_output_layer_keeps_no_logits():
    """Between forward and backward pass nothing of the size of the logits is held."""
    model = tiny_model("llama").requires_grad_(False)
    model.base_model.layers.requires_grad_(True)
    sizes = []

    def pack(tensor):
        sizes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        said = completion_logprobs(model, **THREE, temperature=1.0, chunk=100)
    assert said.logprobs.requires_grad
    assert (14, 400) not in [tuple(size)[-2:] for size in sizes if tuple(size) != (400, 32)]


@pytest.mark.parametrize("learns", [False, True])
def test_where_processes_share_the_weights_each_asks_for_the_output_layer_as_often(learns, monkeypatch):
    """However many tokens its completions have: each call would gather the layer's weights from all of them."""
    monkeypatch.setattr("rlhf_recipes.modeling.logprobs.KEPT_LOGITS", 0)
    model = tiny_model("llama").requires_grad_(learns)
    model.lm_head.weight.ds_id = 0  # DeepSpeed's mark of a weight that ZeRO-3 has divided
    calls, expected = [], completion_logprobs(model, **THREE, temperature=0.7, keep=False, trim=False)
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for mask in (THREE["mask"], torch.eye(6)[[0, 0, 0]].long()):  # 14 tokens and 3
        said = completion_logprobs(model, **THREE | {"mask": mask}, temperature=0.7, chunk=2)
        counts.append(len(calls))
        calls.clear()
    assert counts == [9, 9]
    first = torch.zeros(3, 6, dtype=torch.bool)
    first[:, 0] = True
    torch.testing.assert_close(said.logprobs[first], expected.logprobs[first], atol=1e-5, rtol=1e-5)
