"""Small models and spaces for tests of the search."""

import torch

from tests.architectures import tiny_model

FAMILIES = ("llama", "qwen2", "gpt2", "bert")


def deep_model(name, layers=4):
    """A tiny model of some layers."""
    return tiny_model(name, num_hidden_layers=layers, n_layer=layers, layer_types=["full_attention"] * layers)


def token_batches(count=2, rows=2, length=9):
    """Batches of random tokens; of each the second row has padding behind it."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1, -3:] = 0
    return [
        {"input_ids": torch.randint(3, 400, (rows, length), generator=generator), "attention_mask": mask}
        for _ in range(count)
    ]
