"""Whether a suite is what its names say: headers, continuity from checkpoint to checkpoint, known reports."""
