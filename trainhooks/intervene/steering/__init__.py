"""Steering a token's probability by editing its row: directions, scales, edits, and what they do in a real pass."""
