"""Tensors in, small tensors out: sums, products, norms, spectra, sketches. Knows no model, store or metric."""
