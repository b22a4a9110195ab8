"""The model: torch lives here, and only here.

Decisions: docs/decisions/model.md
"""
