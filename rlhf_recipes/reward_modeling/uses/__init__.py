"""What a reward model is good for besides training: the best of n, and labels with confidence."""
