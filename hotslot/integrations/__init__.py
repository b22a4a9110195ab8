"""Trainers of other projects with hotslot; each module imports its own, which is not needed otherwise."""
