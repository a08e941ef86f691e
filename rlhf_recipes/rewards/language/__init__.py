"""What a text says, and how well: meaning, spelling, grammar."""
