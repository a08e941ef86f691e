"""A token classifier small enough for a test, as a process reward model is."""

import torch
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerBase

from tests.tiny import tiny_tokenizer


def tiny_step_model(num_labels: int = 1, seed: int = 0) -> tuple[PreTrainedTokenizerBase, BertForTokenClassification]:
    """A BERT of one layer with random weights, in evaluation mode, whose outputs differ from token to token."""
    tokenizer = tiny_tokenizer("bert")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id, num_labels=num_labels, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return tokenizer, BertForTokenClassification(config).eval()
