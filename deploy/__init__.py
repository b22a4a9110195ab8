"""Deployment assets of hotslot."""
