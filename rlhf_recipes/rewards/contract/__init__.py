"""What a reward is asked for, how it is called, and what is said when it breaks its word."""
