"""Sources: where checkpoints come from, other than uploads."""
