"""Metrics: one table of them, the plain numbers that parts keep, and what makes a scrape of both.

Decisions: docs/decisions/metrics.md
"""
