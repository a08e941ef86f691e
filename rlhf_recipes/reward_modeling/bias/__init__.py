"""What a reward model leans on besides what people said: measured, drawn, and taken off."""
