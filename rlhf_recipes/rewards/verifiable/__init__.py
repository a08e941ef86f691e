"""Answers that a program can check: where a completion states one, and numbers, mathematics and short texts in it."""
