"""Bytes by key, on a disk or an object store; who may write them, and for how long."""
