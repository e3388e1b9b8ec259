"""Deleting dimensions of the output embedding: orders, variants, curves, and what saliency gains over chance."""
