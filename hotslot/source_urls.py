"""URLs of sources: a folder of object storage (s3, gs, az), or an archive of a web server with its digest.

    s3://BUCKET/FOLDER   gs://BUCKET/FOLDER   az://CONTAINER/FOLDER   https://HOST/PATH.tar#sha256:HEX

A URL carries no credentials: the store has them, by tenant and prefix. So one with a user or a query is refused, and
every URL that is accepted may be logged.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.ids import Digest, parse_digest

OBJECT_SCHEMES = ("s3", "gs", "az")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_URL_CHARS = 2048
_BUCKET = re.compile(r"[a-z0-9$][a-z0-9._-]{1,221}")
_KEY_PART = re.compile(r"[^\x00-\x1f\x7f/\\?#%]+")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]")
_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_FRAGMENT = re.compile(r"sha256[:=]([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class ObjectFolderUrl:
    """A folder of object storage."""

    scheme: str
    bucket: str
    folder: str
    """Beginning of its objects' names, without slashes at its ends; empty for the whole bucket."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.folder}" if self.folder else "")


@dataclass(frozen=True, slots=True)
class ArchiveUrl:
    """An archive of a web server, and the SHA-256 that its bytes must have."""

    host: str
    """With its port, where it has one."""
    path: str
    digest: Digest

    @property
    def address(self) -> str:
        """URL to ask for."""
        return f"https://{self.host}{self.path}"

    def __str__(self) -> str:
        return f"{self.address}#{self.digest}"


def is_source_url(text: str) -> bool:
    """True for a text that can only be meant as a URL of object storage or of a web server."""
    return text.partition("://")[0] in (*OBJECT_SCHEMES, "https", "http") and "://" in text


def parse_source_url(text: str, digest: str = "", *, field: str = "url") -> ObjectFolderUrl | ArchiveUrl:
    """Parse a URL that an adapter is imported from; raises InvalidRequestError, which shows no secret of it."""
    scheme, found, _ = text.partition("://")
    if len(text) > MAX_URL_CHARS or not found or scheme not in (*OBJECT_SCHEMES, "https"):
        schemes = ", ".join(f"{name}://" for name in (*OBJECT_SCHEMES, "https"))
        raise _refused(field, f"expected one of {schemes}, of at most {MAX_URL_CHARS} characters")
    if scheme == "https":
        return _archive(text, digest, field)
    if digest:
        raise _refused("digest", f"is for https://; what {scheme}:// has is known by its ETags")
    bucket, _, folder = text.removeprefix(f"{scheme}://").partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise _refused(field, f"expected {scheme}://BUCKET/FOLDER, with the bucket's name in small letters")
    return ObjectFolderUrl(scheme, bucket, checked_folder(folder, field))


def checked_folder(folder: str, field: str) -> str:
    """A folder's path without slashes at its ends; raises InvalidRequestError for one that could mean another."""
    bare = folder.strip("/")
    if bare and not all(_KEY_PART.fullmatch(part) and part not in (".", "..") for part in bare.split("/")):
        raise _refused(field, "expected names between single slashes, none of them . or .., without ? # % and \\")
    return bare


def checked_address(text: str, field: str) -> tuple[str, str]:
    """Host and path of an https URL without its fragment; raises InvalidRequestError."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as exc:
        raise _refused(field, "expected https://HOST/PATH") from exc
    if "@" in parts.netloc or parts.query or "?" in text.partition("#")[0]:
        raise _refused(field, "has a user or a query, which are for credentials: the store has those of its operator")
    host = parts.netloc.lower().removesuffix(f":{port}" if port is not None else "\0").removesuffix(":")
    path = parts.path or "/"
    if parts.scheme != "https" or not _HOST.fullmatch(host) or not _PATH.fullmatch(path):
        raise _refused(field, "expected https://HOST/PATH, as a browser sends it")
    words = unquote(path).split("/")[1:]
    if any(word in (".", "..") or "\\" in word or "\0" in word for word in words) or "" in words[:-1]:
        raise _refused(field, "expected names between single slashes, none of them . or ..")
    if {"%2f", "%5c", "%25"} & {path[at : at + 3].lower() for at in range(len(path))}:
        raise _refused(field, "has an encoded slash or percent sign, which servers read in several ways")
    return host + (f":{port}" if port not in (None, 443) else ""), path


def _archive(text: str, digest: str, field: str) -> ArchiveUrl:
    bare, _, fragment = text.partition("#")
    host, path = checked_address(bare, field)
    stated = _FRAGMENT.fullmatch(fragment)
    if fragment and stated is None:
        raise _refused(field, "expected no fragment but #sha256: and the archive's digest")
    if not path.endswith(ARCHIVE_SUFFIXES):
        raise _refused(field, f"expected an archive that ends with {', '.join(ARCHIVE_SUFFIXES)}")
    given = parse_digest(digest, field="digest") if digest else None
    named = parse_digest(f"sha256:{stated[1]}", field=field) if stated else None
    if given is None and named is None:
        raise _refused("digest", "is missing: an archive is known by its SHA-256, in the URL as #sha256:HEX")
    if given is not None and named is not None and given != named:
        raise _refused("digest", f"found {given}, and the URL says {named}")
    known = given or named
    assert known is not None
    return ArchiveUrl(host, path, known)


def _refused(field: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(field, problem)])
