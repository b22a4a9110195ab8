"""Callers: who they are, and what each RPC needs of them.

Decisions: docs/decisions/identity.md
"""
