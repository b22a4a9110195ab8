"""Workers of the fleet and their placements, in Redis: hints with leases, never the only copy of anything.

Decisions: docs/decisions/coordination.md
"""
