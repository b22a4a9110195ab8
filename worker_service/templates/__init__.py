"""Chat templates, rendered in processes of their own, whose time and memory are bounded.

Decisions: docs/decisions/templates.md
"""
