"""Placement policy: the worker that a request should go to, as pure functions of the fleet's state.

Decisions: docs/decisions/fleet.md
"""
