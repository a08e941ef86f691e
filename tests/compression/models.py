"""Models of four layers of every family that can be cut, with random weights wide enough to tell structures apart."""

import inspect
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from rlhf_recipes.compression.families import FAMILIES
from rlhf_recipes.compression.structure import Structure
from tests.architectures import NAMES, SIZES

LAYERS = 4
ENCODERS = tuple(kind for kind, family in FAMILIES.items() if family.name == "BERT-like")
DECODERS = tuple(kind for kind in FAMILIES if kind not in ENCODERS)
DEPTHS = ("num_hidden_layers", "n_layer")


def tiny(kind, head="language", **options):
    """A model of four layers, 4 query heads, of which two share keys where the family can, and 64 neurons."""
    config_class = NAMES[kind]
    names = set(inspect.signature(config_class).parameters) | set(config_class.attribute_map)
    sizes = {name: LAYERS if name in DEPTHS else size for name, size in SIZES.items() if name in names}
    config = config_class(**sizes | {"num_labels": 2} | options)
    auto = AutoModelForMaskedLM if kind in ENCODERS else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (auto if head == "language" else AutoModelForSequenceClassification).from_config(config)
        for name, parameter in model.named_parameters():
            # Norms of Gemma are what is added to 1.
            torch.nn.init.normal_(parameter, std=0.2, mean=1.0 if "norm" in name and "gemma" not in kind else 0.0)
    return model.eval()


def texts(vocabulary=400, rows=2, length=12):
    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))


def logits(model, ids, **inputs):
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


def even(model, prunes_heads):
    """The second and the last layer, with three neurons each, and one group of heads where there can be fewer."""
    whole = Structure.whole(model)
    layer = whole.layers[0]
    one, other = ((1,), (0,)) if prunes_heads else (layer.heads, layer.heads)
    return replace(
        whole,
        layers=(
            None,
            replace(layer, heads=one, neurons=(3, 5, 40)),
            None,
            replace(layer, heads=other, neurons=(0, 1, 63)),
        ),
    )


def uneven(model):
    """No attention in the first layer, fewer heads in the second, no MLP in the third, no fourth."""
    whole = Structure.whole(model)
    layer = whole.layers[0]
    return replace(
        whole,
        layers=(
            replace(layer, heads=()),
            replace(layer, heads=(1,), neurons=(3, 5, 40)),
            replace(layer, neurons=()),
            None,
        ),
    )
