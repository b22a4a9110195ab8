"""The catalog: adapters, versions, tags and base models, durable and transactional.

Decisions: docs/decisions/catalog.md
"""
