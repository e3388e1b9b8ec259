"""`python -m trainhooks` is the command `trainhooks`."""

from trainhooks.cli import app

app()
