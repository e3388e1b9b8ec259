"""Corpora of any size and form, and the counting of their tokens."""
