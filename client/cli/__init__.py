"""The `hotslot` command."""
