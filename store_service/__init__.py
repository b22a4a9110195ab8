"""The adapter store: imports, validates, normalises and serves adapters, addressed by content."""
