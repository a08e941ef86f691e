"""Loading models for their roles; the only place that knows peft and bitsandbytes."""
