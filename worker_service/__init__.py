"""A worker: one compiled base model that serves rows with different adapters in one batch."""
