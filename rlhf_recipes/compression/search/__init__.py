"""The structure policy, what it is rewarded with, the space that it chooses from, and what it is held against."""
