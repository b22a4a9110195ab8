"""Blobs: bytes known by their digest, complete and right or not there at all.

Decisions: docs/decisions/content.md
"""
