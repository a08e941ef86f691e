"""A critic that has learned before PPO begins: rollouts that a run keeps, and the training of a critic on them."""
