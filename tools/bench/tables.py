"""Text in the cells of a report's tables."""


def one_line(text: str) -> str:
    """A text that a cell of a table can hold."""
    return " ".join(text.replace("|", ",").split())
