"""What a reward model is worth on people's feedback of every kind: figures, intervals, baselines and ceilings."""
