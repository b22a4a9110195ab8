"""Routing of requests: to this worker, or one hop away to the one that has its adapters and room.

Decisions: docs/decisions/routing.md
"""
