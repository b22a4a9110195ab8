"""What the store, the workers and the clients have in common; imports neither torch nor either service."""
