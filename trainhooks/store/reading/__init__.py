"""Reading a store, also while a run writes it; and what may count of what lies there."""
