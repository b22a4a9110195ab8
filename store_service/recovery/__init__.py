"""Keeps published blobs whole: brings back what is not on the disk, repairs what rots there.

Decisions: docs/decisions/content.md
"""
