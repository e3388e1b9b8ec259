"""The file formats of checkpoints, each read tensor by tensor, by offset; nothing in a file is executed."""
