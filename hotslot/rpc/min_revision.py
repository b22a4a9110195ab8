"""Revision that a call needs at least: the field `min_revision`, or the metadata key `hotslot-min-revision`."""

from collections.abc import Iterable

from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.rpc.metadata import single_values

MIN_REVISION_KEY = "hotslot-min-revision"
MAX_REVISION = 2**63 - 1
CATALOG_KEY = "hotslot-catalog"
"""In the headers of a watch: id of the catalog whose revisions it streams; those of another one count other changes."""


def noted_min_revision(metadata: Iterable[tuple[str, str | bytes]]) -> int:
    """The revision that a call's metadata asks for; 0 when it asks for none. Raises InvalidRequestError."""
    noted = single_values(metadata, (MIN_REVISION_KEY,)).get(MIN_REVISION_KEY)
    return 0 if noted is None else parse_min_revision(noted)


def parse_min_revision(text: str) -> int:
    """Read a revision as metadata and HTTP headers have it; raises InvalidRequestError."""
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_REVISION))
    if not is_number or int(text) > MAX_REVISION:
        problem = f"found {text[:40]!r}, expected a number from 0 to {MAX_REVISION}"
        raise InvalidRequestError([FieldViolation(MIN_REVISION_KEY, problem)])
    return int(text)


def min_revision_of(field: int, metadata: Iterable[tuple[str, str | bytes]]) -> int:
    """The larger one of a message's field and its call's metadata; raises InvalidRequestError."""
    if field < 0:
        raise InvalidRequestError([FieldViolation("min_revision", f"found {field}, expected 0 or more")])
    return max(field, noted_min_revision(metadata))
