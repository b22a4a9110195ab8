"""How work is run: what blocks on threads, bounded and in turn, so that the event loop never waits."""
