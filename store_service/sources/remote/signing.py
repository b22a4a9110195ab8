"""Addresses of objects, signed with a tenant's credentials: obstore signs, and asks nobody for it.

obstore takes what a call leaves out from the process's environment, which has the credentials of the store's own
bucket. So everything is given, and what comes out is looked at before it is used.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from hotslot.errors import SourceUnavailableError, StoreUnavailableError
from hotslot.source_urls import ObjectFolderUrl
from store_service.sources.access import AzureAccess, GcsAccess, S3Access, SourceGrant
from store_service.sources.remote.options import AddressOf

if TYPE_CHECKING:
    from obstore.store import AzureAccessKey, AzureStore, GCSStore, S3Credential, S3Store

VALID_FOR = timedelta(minutes=15)
"""Time within which a signed request must begin; each attempt has a signature of its own."""
GOOGLE_ENDPOINT = "https://storage.googleapis.com"

Sign = Callable[[str, str], str]
"""Signed address for a method and an object's name."""


class ObjectAddresses:
    """Addresses of the objects in one folder, by one row of credentials."""

    def __init__(self, url: ObjectFolderUrl, grant: SourceGrant) -> None:
        """Raises SourceUnavailableError for credentials that cannot be used."""
        self._url = url
        self.begin: str
        """Beginning of all addresses: the server, and the bucket on it."""
        if grant.s3 is not None:
            endpoint = grant.s3.endpoint or f"https://s3.{grant.s3.region}.amazonaws.com"
            self.begin = f"{endpoint}/{url.bucket}/"
            self._sign = self._signer(lambda: _s3(url.bucket, endpoint, grant.s3))
        elif grant.gcs is not None:
            endpoint = grant.gcs.endpoint or GOOGLE_ENDPOINT
            self.begin = f"{endpoint}/{url.bucket}/"
            self._sign = self._signer(lambda: _gcs(url.bucket, endpoint, grant.gcs))
        else:
            assert grant.azure is not None, "a row has the credentials of its prefix's scheme"
            endpoint = grant.azure.endpoint or f"https://{grant.azure.account_name}.blob.core.windows.net"
            self.begin = f"{endpoint}/{url.bucket}/"
            signer = self._signer(lambda: _azure(url.bucket, endpoint, grant.azure))
            # Azure's signatures are for rights, not methods: that to read is for HEAD, too.
            self._sign = lambda _, name: signer("GET", name)

    def of(self, name: str) -> AddressOf:
        """Address of a file in the folder."""
        key = f"{self._url.folder}/{name}" if self._url.folder else name

        def address(method: str) -> tuple[str, Mapping[str, str]]:
            signed = self._sign(method, key)
            if not signed.startswith(self.begin):
                # The address itself is a credential.
                raise self._unusable(f"a setting of the environment leads away from {self.begin}")
            return signed, {}

        return address

    def _signer(self, opened: Callable[[], "S3Store | GCSStore | AzureStore"]) -> Sign:
        obstore = _library()
        try:
            store = opened()
        except (obstore.exceptions.BaseError, OSError, ValueError):
            raise self._unusable("its row in source_access_file, or a variable beside it, is not valid") from None

        def sign(method: str, key: str) -> str:
            try:
                return str(obstore.sign(store, method, key, VALID_FOR))
            except (obstore.exceptions.BaseError, OSError, ValueError):
                raise self._unusable("its row in source_access_file has no valid key") from None

        return sign

    def _unusable(self, problem: str) -> SourceUnavailableError:
        return SourceUnavailableError(f"{self._url} cannot be asked: {problem}")


def _s3(bucket: str, endpoint: str, access: S3Access | None) -> "S3Store":
    assert access is not None
    from obstore.store import S3Store

    credential: S3Credential = {
        "access_key_id": access.access_key_id,
        "secret_access_key": access.secret_access_key.get_secret_value(),
        "token": access.session_token.get_secret_value() or None,
        "expires_at": None,
    }
    return S3Store(
        bucket,
        config={"endpoint": endpoint, "aws_endpoint_url_s3": endpoint},
        region=access.region,
        virtual_hosted_style_request=False,
        skip_signature=False,
        s3_express=False,
        client_options={"allow_http": True},
        credential_provider=lambda: credential,
    )


def _gcs(bucket: str, endpoint: str, access: GcsAccess | None) -> "GCSStore":
    assert access is not None
    from obstore.store import GCSStore

    return GCSStore(
        bucket,
        service_account=str(access.service_account_file),
        base_url=endpoint,
        skip_signature=False,
        client_options={"allow_http": True},
    )


def _azure(container: str, endpoint: str, access: AzureAccess | None) -> "AzureStore":
    assert access is not None
    from obstore.store import AzureStore

    credential: AzureAccessKey = {"access_key": access.account_key.get_secret_value(), "expires_at": None}

    return AzureStore(
        container,
        account_name=access.account_name,
        endpoint=endpoint,
        use_emulator=False,
        skip_signature=False,
        client_options={"allow_http": True},
        credential_provider=lambda: credential,
    )


@cache
def _library() -> Any:
    try:
        # An optional package, and half a second of a start that may not need it.
        import obstore
    except ImportError as exc:
        raise StoreUnavailableError("object storage needs the package obstore: pip install 'hotslot[objects]'") from exc
    return obstore
