"""The model: torch lives here, and only here."""
