"""gRPC as hotslot uses it: errors on the wire, server and channel set-up, tenants.

Decisions: docs/decisions/server.md
"""
