"""What a tokenizer lacks to train with: a token that pads, and the end of a text."""
