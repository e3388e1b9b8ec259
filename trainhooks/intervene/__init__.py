"""Interventions on the output embedding, each beside the reference that could explain it away."""
