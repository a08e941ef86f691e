"""Frozen lower layers, which say the same for every role and in every epoch: read once."""
