"""Quotas of tenants: limits from a file, rates, and what runs at the same time.

Decisions: docs/decisions/quotas.md
"""
