"""Compiled code that ships from one worker to others like it: how it is packed, and how it travels.

Decisions: docs/decisions/compiled_code.md
"""
