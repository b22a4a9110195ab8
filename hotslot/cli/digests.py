"""Short digests: the beginning of one, where it fits one version or base model only."""

import re
from collections.abc import Iterable

from hotslot.clients.blocking import BlockingHotslotClient
from hotslot.errors import FieldViolation, InvalidRequestError, VersionNotFoundError
from hotslot.ids import DIGEST_HEX, Digest
from hotslot.references import parse_reference

MIN_HEX_DIGITS = 4
MAX_LISTED = 8
_SHORT = re.compile(rf"(?:sha256:)?([0-9a-f]{{{MIN_HEX_DIGITS},63}})")


def check_reference(text: str) -> bool:
    """Raise InvalidReferenceError for what is no reference; True where its digest is short."""
    named, at, digest = text.partition("@")
    is_short = bool(at) and (bool(_SHORT.fullmatch(digest)) or bool(DIGEST_HEX.fullmatch(digest)))
    parse_reference(named if is_short else text)
    return is_short


def full_reference(client: BlockingHotslotClient, text: str) -> str:
    """A reference with its digest in full; raises for one that fits no version, or several."""
    if not check_reference(text):
        return text
    named, _, digest = text.partition("@")
    name = parse_reference(named).name
    found = completed(text, digest, (version.digest for version in client.store.list_versions(name)))
    if found is None:
        raise VersionNotFoundError(name, digest)
    return f"{named}@{found}"


def full_base(client: BlockingHotslotClient, text: str) -> str:
    """A base model's name as it is, or its digest in full; a name goes before the beginning of a digest."""
    if not _SHORT.fullmatch(text):
        return text
    models = list(client.store.list_base_models())
    if any(model.spec.name == text for model in models):
        return text
    return completed(text, text, (model.digest for model in models)) or text


def completed(text: str, beginning: str, digests: Iterable[str]) -> Digest | None:
    """The digest that begins so, None where none does; raises InvalidRequestError with the candidates of several."""
    hex_digits = beginning.removeprefix("sha256:")
    found = sorted({digest for digest in digests if digest.removeprefix("sha256:").startswith(hex_digits)})
    if len(found) > 1:
        more = f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
        problem = f"{text!r} fits {', '.join(found[:MAX_LISTED])}{more}; give more digits"
        raise InvalidRequestError([FieldViolation("digest", problem)])
    return Digest(found[0]) if found else None
