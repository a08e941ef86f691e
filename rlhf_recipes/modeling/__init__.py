"""Loading models for their roles, with peft and bitsandbytes; frozen models of rewards: `frozen.py`."""
