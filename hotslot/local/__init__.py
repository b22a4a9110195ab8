"""Processes on this machine: an embedded Valkey, and children that end with their parent."""
