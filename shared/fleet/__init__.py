"""Which worker a request should go to: pure functions over what the directory knows.

Decisions: docs/decisions/fleet.md
"""
