"""A smaller model that is about as good: what can be left out of one, what that costs, and the cut itself."""
