"""What stands around a run of PPO: what it is given, what it saves, shows and measures."""
