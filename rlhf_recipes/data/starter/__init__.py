"""The starter kit: a small language model, a small encoder and human ratings, as plain folders."""
