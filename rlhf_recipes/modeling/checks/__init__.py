"""What is found out about a model on its first batch, and put aside or switched off where it would do harm."""
