"""Checkpoints in Hugging Face repositories."""
