"""Which worker to call and what lives where: the use cases behind PlacementService.

Decisions: docs/decisions/placement.md
"""
