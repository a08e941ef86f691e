"""The loss of healing against numbers worked by hand and by scipy, and what is left after it."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from transformers import PreTrainedModel

from rlhf_recipes.compression.config import CompressConfig
from rlhf_recipes.compression.cut import cut
from rlhf_recipes.compression.heal import HealTrainer, heal, hidden_distance, score_distance, token_distance
from rlhf_recipes.compression.quantize import round_layers
from rlhf_recipes.compression.structure import Structure
from rlhf_recipes.data.collators import padded
from rlhf_recipes.modeling.loading import ModelArguments
from tests.compression.models import even, logits, texts, tiny


class Words:
    """Rows of token ids: what a trainer needs of a material."""

    kind = "language"

    def __init__(self, rows):
        self.train = Dataset.from_dict({"input_ids": rows})

    def collate(self, rows):
        return padded([row["input_ids"] for row in rows], 0)

    def counts(self, batch):
        count = batch["attention_mask"][:, 1:].sum().float()
        return torch.stack([count, count])

    def loss(self, said, batch):
        real = batch["attention_mask"][:, 1:].bool()
        return torch.nn.functional.cross_entropy(said[:, :-1][real], batch["input_ids"][:, 1:][real], reduction="sum")


def config(folder, **options):
    given = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "use_cpu": True, "bf16": False,
             "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}  # fmt: skip
    return CompressConfig(output_dir=str(folder), **given | options)


LORA = ModelArguments(use_peft=True, lora_r=4, lora_dropout=0.0)
ROWS = [texts(rows=1, length=length)[0].tolist() for length in (12, 7, 9, 5, 11, 6, 8, 10)]


# ---- distances


def test_the_distance_of_tokens_is_the_forward_kl_at_a_temperature():
    generator = np.random.default_rng(0)
    said, target = generator.normal(size=(2, 5, 7)) * 3
    for temperature in (1.0, 2.0, 5.0):
        expected = temperature**2 * entropy(
            softmax(target / temperature, axis=1), softmax(said / temperature, axis=1), axis=1
        )
        found = token_distance(torch.tensor(said), torch.tensor(target), temperature)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_the_direction_of_the_distance_is_from_the_original():
    """p = (1/2, 1/2) and q = (1/4, 3/4): KL(p || q) = ln 2 - ln 3 / 2, and KL(q || p) is another number."""
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert float(token_distance(q, p, 1.0)) == pytest.approx(np.log(2) - np.log(3) / 2, abs=1e-6)
    assert float(token_distance(p, p, 3.0)) == pytest.approx(0, abs=1e-7)


def test_the_gradient_of_the_distance_at_temperature_one_is_the_difference_of_distributions():
    said = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True)
    target = torch.tensor([[1.0, 0.0, -0.5]])
    token_distance(said, target, 1.0).sum().backward()
    np.testing.assert_allclose(said.grad, said.detach().softmax(-1) - target.softmax(-1), atol=1e-6)


def test_the_distance_of_scores_is_half_the_squared_difference():
    assert score_distance(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 2.0], [1.0, 2.0]])).tolist() == [
        2.0,
        2.5,
    ]


def test_hidden_states_are_compared_where_they_enter_the_same_layer():
    """Of layers 0 to 3 the second and the last are left. What enters the last is compared, and what leaves it."""
    teacher = [torch.full((1, 2, 2), float(number)) for number in range(1, 6)]
    student = [torch.full((1, 2, 2), value) for value in (0.0, 5.0, 6.0)]
    real = torch.tensor([[True, False]])
    expected = ((5 - 4) ** 2 / 4**2 + (6 - 5) ** 2 / 5**2) / 2
    assert hidden_distance(student, teacher, [1, 3], real).tolist() == pytest.approx([expected])


# ---- the trainer


def test_the_loss_of_a_batch_is_that_worked_by_hand(tmp_path):
    model, teacher = tiny("llama"), tiny("qwen3")
    material = Words(ROWS[:3])
    args = config(tmp_path, distill_weight=0.3, distill_temperature=2.0)
    trainer = HealTrainer(model, teacher, material, args, range(4))
    batch = material.collate(material.train.to_list())
    own, far, count = 0.0, 0.0, 0
    said, target = (logits(of, batch["input_ids"], attention_mask=batch["attention_mask"]).double().numpy() for of in
                    (model, teacher))  # fmt: skip
    for row, ids in enumerate(ROWS[:3]):
        for place in range(len(ids) - 1):
            own -= log_softmax(said[row, place])[ids[place + 1]]
            far += 4 * entropy(softmax(target[row, place] / 2), softmax(said[row, place] / 2))
            count += 1
    model.train()
    assert float(trainer.compute_loss(model, batch).detach()) == pytest.approx(
        (0.7 * own + 0.3 * far) / count, rel=1e-4
    )


def test_accumulation_changes_nothing(tmp_path):
    """Texts of different lengths: a mean of means would be another loss."""
    found = []
    for size, accumulation in ((8, 1), (2, 4)):
        args = config(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
                      learning_rate=1e-2, hidden_weight=0.1)  # fmt: skip
        model = tiny("llama")
        heal(model, tiny("llama", initializer_range=0.3), Words(ROWS), args, ModelArguments(), range(4))
        found.append(model.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_healed_model_is_an_ordinary_one_and_nearer_to_the_original(tmp_path, kind):
    teacher = tiny(kind)
    before = copy.deepcopy(teacher.state_dict())
    structure = even(teacher, kind == "llama")
    small = cut(teacher, structure)
    ids = texts()
    far = float(token_distance(logits(small, ids), logits(teacher, ids), 1.0).mean())
    args = config(tmp_path, num_train_epochs=6, learning_rate=3e-2, distill_weight=1.0)
    each = []
    healed, log = heal(small, teacher, Words([*ids.tolist(), *ROWS]), args, LORA, structure.kept,
                       each_epoch=lambda model: each.append(model.training) or {"quality": 1.0})  # fmt: skip
    assert type(healed) is type(teacher)
    assert isinstance(healed, PreTrainedModel)
    assert not any("lora" in name for name, _ in healed.named_parameters())
    assert float(token_distance(logits(healed, ids), logits(teacher, ids), 1.0).mean()) < 0.7 * far
    assert each == [False] * 6
    assert sum("quality" in row for row in log) == 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    healed.save_pretrained(tmp_path / "model")
    again = type(teacher).from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(logits(again, ids), logits(healed, ids))


def test_without_a_step_of_any_size_adapters_change_nothing(tmp_path):
    teacher = tiny("llama")
    small = cut(teacher, even(teacher, True))
    said = logits(small, texts())
    healed, _ = heal(small, teacher, Words(ROWS), config(tmp_path, learning_rate=0.0), LORA, (1, 3))
    torch.testing.assert_close(logits(healed, texts()), said, rtol=1e-6, atol=1e-6)


def test_layers_of_few_bits_are_rounded_after_the_adapters_are_merged(tmp_path):
    teacher = tiny("llama")
    structure = Structure.whole(teacher)
    healed, _ = heal(cut(teacher, structure), teacher, Words(ROWS), config(tmp_path, learning_rate=1e-2), LORA,
                     range(4), bits=[8, 16, 8, 8])  # fmt: skip
    said = logits(healed, texts())
    again = copy.deepcopy(healed)
    round_layers(again, [8, 16, 8, 8])
    torch.testing.assert_close(logits(again, texts()), said, rtol=1e-5, atol=1e-5)
    round_layers(again, [8, 8, 8, 8])
    assert (logits(again, texts()) - said).abs().max() > 1e-4  # the second layer was not
