"""Writing a store: the run's choices, the writer, the thread beside the training thread."""

from trainhooks.store.writing.options import Writing as Writing
