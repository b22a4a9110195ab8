"""Imports: from a source's name to a published version, sharing every fetch that can be shared.

Decisions: docs/decisions/imports.md
"""
