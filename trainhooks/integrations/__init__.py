"""Recorders for other people's loops; import `lightning` or `transformers` from here, each with its package."""
