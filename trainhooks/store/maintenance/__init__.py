"""What is done to a store beside its run: verify, repair, compact, copy, export, plan."""
