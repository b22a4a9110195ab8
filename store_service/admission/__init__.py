"""Admission: pure, torch-free checks that decide what may be served, and the one form it is served in.

Decisions: docs/decisions/admission.md
"""
