"""Audit: an append-only log of which principal did what to which object, and how that ended.

Decisions: docs/decisions/identity.md
"""
