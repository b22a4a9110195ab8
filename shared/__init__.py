"""Code that store and workers have in common; imports neither torch nor either service."""
