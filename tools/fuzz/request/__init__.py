"""Fuzzing of Generate's request, from its bytes on the wire to the text of an answer."""
