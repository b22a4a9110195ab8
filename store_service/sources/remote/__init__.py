"""Checkpoints in object storage, and in archives of web servers."""
