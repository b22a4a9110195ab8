"""Use cases behind PlacementService: the worker to call, and listings of workers and placements.

Decisions: docs/decisions/placement.md
"""
