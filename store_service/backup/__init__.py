"""A consistent copy of a catalog with its blobs, taken while the store runs, and the way back.

Decisions: docs/decisions/backup.md
"""
