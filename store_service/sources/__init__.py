"""Sources: where checkpoints come from, other than uploads.

Decisions: docs/decisions/imports.md
"""
