"""Metrics: pure functions from tensors to small tensors, and the classes that record them."""
