"""Where a request is served: on this worker, or one hop away on the one that has its adapters and room.

Decisions: docs/decisions/routing.md
"""
