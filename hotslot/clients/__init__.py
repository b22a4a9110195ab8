"""Clients of the store, of workers and of both, for asyncio and for threads."""
