"""Loading models for their roles, with peft and bitsandbytes; the frozen models of rewards are in `rewards/frozen.py`."""
