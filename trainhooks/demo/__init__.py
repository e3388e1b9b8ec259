"""The demo: text, a tokenizer and a small model to pretrain, so that there is a run to look at within minutes."""
