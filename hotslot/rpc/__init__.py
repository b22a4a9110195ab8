"""Channels, metadata, statuses and chunks: what both ends of a call share."""
