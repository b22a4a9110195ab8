"""Who is in the fleet and what lives where, in Redis: hints with leases, never the only copy of anything.

Decisions: docs/decisions/coordination.md
"""
