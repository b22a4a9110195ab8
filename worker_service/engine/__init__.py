"""The engine: which sequence computes what in which step. Knows neither torch nor gRPC nor Redis.

Decisions: docs/decisions/engine.md
"""
