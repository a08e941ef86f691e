"""The parts of benchmarks/ppo_vs_trl.py: one file for each trainer, and what they share."""
