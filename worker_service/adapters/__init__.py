"""Adapters on their way into the worker: references, the store, host memory. Slots belong to the engine.

Decisions: docs/decisions/adapters.md
"""
