"""Checkpoint suites: a run's saved states, read tensor by tensor, wherever they lie."""
