"""Migrations: the catalog's schema, step by step; run when the store starts."""
