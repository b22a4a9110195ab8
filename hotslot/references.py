"""References to adapters: `name[:tag][@sha256:…]`, as container images have it; `owner~name…` for another tenant's."""

import re
from dataclasses import dataclass

from hotslot.errors import InvalidReferenceError
from hotslot.ids import TENANT_PATTERN, AdapterName, Digest, TagName, TenantId, is_digest

DEFAULT_TAG = TagName("latest")
MAX_NAME_LENGTH = 255
MAX_TAG_LENGTH = 128

_SEGMENT = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_NAME = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_OWNER = re.compile(TENANT_PATTERN)
OWNER_MARK = "~"
"""Between an owner and the name of an adapter that it shares. No name of a tenant's own has it."""
_TAG = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{MAX_TAG_LENGTH - 1}}}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference; at least one of `tag` and `digest` is set, and the digest wins."""

    name: AdapterName
    tag: TagName | None
    digest: Digest | None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.name}{tag}{digest}"

    @property
    def short(self) -> str:
        """Text of a tag without the digest beside it, as people mostly write it."""
        if self.tag is None:
            return str(self)
        return str(self.name) if self.tag == DEFAULT_TAG else f"{self.name}:{self.tag}"


def parse_name(text: str) -> AdapterName:
    """Check an adapter's name, the calling tenant's own or `owner~name`; raises InvalidReferenceError."""
    _check_text(text)
    owner, mark, name = text.rpartition(OWNER_MARK)
    if mark and not _OWNER.fullmatch(owner):
        raise InvalidReferenceError(text, f"before {OWNER_MARK!r} must stand the tenant that shares the adapter")
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        raise InvalidReferenceError(
            text,
            f"the name must be segments of [a-z0-9] joined by '.', '_', '-' and separated by '/', "
            f"at most {MAX_NAME_LENGTH} characters",
        )
    return AdapterName(text)


def parse_own_reference(text: str) -> Reference:
    """A reference to publish under; raises InvalidReferenceError, also for another tenant's."""
    reference = parse_reference(text)
    check_own(reference.name)
    return reference


def check_own(name: AdapterName) -> None:
    """Raise InvalidReferenceError for the name of an adapter that another tenant shares."""
    if OWNER_MARK in name:
        raise InvalidReferenceError(name, "what another tenant shares is read and used; publish under an own name")


def split_owner(name: AdapterName) -> tuple[TenantId | None, AdapterName]:
    """The owner of a name, None for the calling tenant, and the owner's name for the adapter."""
    owner, mark, own = name.rpartition(OWNER_MARK)
    return (TenantId(owner), AdapterName(own)) if mark else (None, name)


def shared_name(owner: TenantId, name: AdapterName) -> AdapterName:
    """Name of an adapter for the tenants that it is shared with."""
    return AdapterName(f"{owner}{OWNER_MARK}{name}")


def parse_tag(text: str) -> TagName:
    """Check a tag; raises InvalidReferenceError."""
    _check_text(text)
    if not _TAG.fullmatch(text):
        raise InvalidReferenceError(
            text, f"a tag is 1 to {MAX_TAG_LENGTH} of [A-Za-z0-9_.-], not beginning with '.' or '-'"
        )
    return TagName(text)


def parse_reference(text: str) -> Reference:
    """Parse `name[:tag][@digest]`; no tag and no digest means the tag `latest`. Raises InvalidReferenceError."""
    _check_text(text)
    rest, at, digest_text = text.partition("@")
    if at and not is_digest(digest_text):
        raise InvalidReferenceError(text, "after '@' must stand 'sha256:' and 64 lower-case hex digits")
    name_text, colon, tag_text = rest.partition(":")
    name = parse_name(name_text)
    tag = parse_tag(tag_text) if colon else None
    digest = Digest(digest_text) if at else None
    if tag is None and digest is None:
        tag = DEFAULT_TAG
    return Reference(name, tag, digest)


def _check_text(value: object) -> None:
    """Refuse what callers without a type checker give in the place of a text; raises InvalidReferenceError."""
    if not isinstance(value, str):
        raise InvalidReferenceError(repr(value)[:80], f"expected a text, found {type(value).__name__}")
