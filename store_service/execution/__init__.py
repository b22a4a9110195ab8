"""Execution of work so that the event loop never waits: on threads, as much as can be answered, and in turn.

Decisions: docs/decisions/execution.md
"""
