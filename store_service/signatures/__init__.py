"""Signatures of checkpoints: policies of tenants, and who signed what with OpenSSF model signing.

Decisions: docs/decisions/signatures.md
"""
