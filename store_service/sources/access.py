"""Tenants' access to object storage and web servers: a JSON file of the operator's, read for each import.

    {"sources": [
      {"prefix": "s3://acme/adapters/", "tenants": ["acme"],
       "s3": {"region": "eu-west-1", "access_key_id": "…", "secret_access_key": "…"}},
      {"prefix": "https://models.example.com/", "tenants": ["*"]}]}

Nothing is allowed that no row allows, and nothing comes from the process's environment: the credentials of a tenant's
row are for that tenant's imports below the row's prefix, and for nothing else.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from hotslot.errors import (
    FieldViolation,
    HotslotError,
    InvalidRequestError,
    SourceForbiddenError,
    StoreUnavailableError,
)
from hotslot.ids import TenantId, parse_tenant
from hotslot.source_urls import OBJECT_SCHEMES, ArchiveUrl, ObjectFolderUrl, checked_address, parse_source_url

log = structlog.get_logger(__name__)

ANY_TENANT = "*"
MAX_ACCESS_BYTES = 16 * 2**20


def _endpoint(text: str) -> str:
    scheme, found, rest = text.partition("://")
    if text and (scheme not in ("https", "http") or not found or not rest or set(rest) & set("@?#")):
        raise ValueError("expected https://HOST[:PORT] or http://HOST[:PORT]")
    return text.rstrip("/")


ServerEndpoint = Annotated[str, AfterValidator(_endpoint)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class S3Access(_Row):
    """Credentials for a bucket that speaks S3."""

    access_key_id: str = Field(min_length=1)
    secret_access_key: SecretStr
    session_token: SecretStr = SecretStr("")
    region: str = Field(default="us-east-1", pattern=r"[a-z0-9-]{1,64}")
    endpoint: ServerEndpoint = ""
    """Empty for Amazon's, of the region."""


class GcsAccess(_Row):
    """Key of a service account of Google's."""

    service_account_file: Path
    endpoint: ServerEndpoint = ""
    """Empty for Google's."""


class AzureAccess(_Row):
    """Key of a storage account of Azure's."""

    account_name: str = Field(pattern=r"[a-z0-9]{3,24}")
    account_key: SecretStr
    endpoint: ServerEndpoint = ""
    """Empty for Azure's, of the account."""


class WebAccess(_Row):
    """Credentials for a web server."""

    bearer_token: SecretStr = SecretStr("")


class SourceGrant(_Row):
    """One row: tenants who may import what is below a prefix, and with which credentials."""

    prefix: str
    tenants: tuple[str, ...] = Field(min_length=1)
    s3: S3Access | None = None
    gcs: GcsAccess | None = None
    azure: AzureAccess | None = None
    web: WebAccess | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            self.parts()
            for name in self.tenants:
                if name != ANY_TENANT:
                    parse_tenant(name)
        except HotslotError as exc:
            raise ValueError(exc.message) from exc
        wanted = {"s3": "s3", "gs": "gcs", "az": "azure", "https": "web"}[self.prefix.partition("://")[0]]
        given = {name for name in ("s3", "gcs", "azure", "web") if getattr(self, name) is not None}
        if given - {wanted} or (wanted != "web" and not given):
            raise ValueError(f"expected `{wanted}` for {self.prefix}, and no other credentials")
        return self

    def parts(self) -> tuple[str, ...]:
        """Scheme, place and folders of the prefix; raises InvalidRequestError."""
        scheme = self.prefix.partition("://")[0]
        if scheme in OBJECT_SCHEMES:
            found = parse_source_url(self.prefix, field="prefix")
            assert isinstance(found, ObjectFolderUrl)
            return _parts(found)
        host, path = checked_address(self.prefix, "prefix")
        return "https", host, *_words(path)

    def serves(self, tenant: TenantId) -> bool:
        """True for a tenant who may use the row."""
        return tenant in self.tenants or ANY_TENANT in self.tenants


class _AccessFile(_Row):
    sources: tuple[SourceGrant, ...]


class SourceAccess:
    """The file of grants, as it is when an import asks."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def open(self) -> None:
        """Read it once, for a start that says what is wrong with it; raises InvalidRequestError."""
        self._grants()

    def grant(self, tenant: TenantId, url: ObjectFolderUrl | ArchiveUrl) -> SourceGrant:
        """The row with the longest prefix that the tenant may use.

        Raises SourceForbiddenError, and StoreUnavailableError while the file cannot be read.
        """
        try:
            grants = self._grants()
        except InvalidRequestError as exc:
            log.error("source_access_unreadable", why=exc.message)
            raise StoreUnavailableError("the store's source_access_file cannot be read; its operator sees why") from exc
        wanted = _parts(url)
        fitting = [
            (len(parts), grant)
            for grant in grants
            if grant.serves(tenant) and wanted[: len(parts := grant.parts())] == parts
        ]
        if not fitting:
            raise SourceForbiddenError(
                f"{url} may not be imported by tenant {tenant}; the store's operator may add its prefix to "
                "source_access_file"
            )
        return max(fitting, key=lambda found: found[0])[1]

    def _grants(self) -> tuple[SourceGrant, ...]:
        if self._path is None:
            return ()
        try:
            data = self._path.read_bytes()
        except OSError as exc:
            raise _unreadable(self._path, [exc.strerror or str(exc)]) from exc
        if len(data) > MAX_ACCESS_BYTES:
            raise _unreadable(self._path, [f"more than {MAX_ACCESS_BYTES} bytes"])
        try:
            return _AccessFile.model_validate_json(data).sources
        except ValidationError as exc:
            # Neither the values nor the library's own text with them: these are secrets.
            problems = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors()[:8]]
            raise _unreadable(self._path, problems) from None


NO_ACCESS = SourceAccess(None)
"""Nothing is allowed."""


def _unreadable(path: Path, problems: Iterable[str]) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("source_access_file", f"{path}: {'; '.join(problems)}")])


def _parts(url: ObjectFolderUrl | ArchiveUrl) -> tuple[str, ...]:
    if isinstance(url, ObjectFolderUrl):
        return url.scheme, url.bucket, *_words(url.folder)
    return "https", url.host, *_words(url.path)


def _words(path: str) -> tuple[str, ...]:
    return tuple(word for word in path.split("/") if word)
