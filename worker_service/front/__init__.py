"""The worker's edge: gRPC servicers, request checks, text in and out, and the bridge to the engine's thread.

Decisions: docs/decisions/front.md
"""
