"""The gateway: OpenAI's HTTP over hotslot's Python client.

Decisions: docs/decisions/gateway.md
"""
