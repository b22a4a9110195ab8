"""URL of the catalog's database: checked when settings are read, so that a mistake is one line."""

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from hotslot.secret_urls import scheme_of
from shared.settings import SecretUrl

BACKENDS = ("sqlite", "postgresql")
EXPECTED = "expected postgresql+psycopg://user:password@host/name or sqlite:////path/to/file"


class CatalogUrl(SecretUrl):
    """URL of a database that the catalog can be in, whose driver is installed."""

    example = "postgresql+psycopg://user:password@host/name"

    @classmethod
    def check(cls, url: str) -> None:
        """Raise ValueError, without any part of the URL but its scheme, for what cannot be used."""
        scheme = scheme_of(url)[:40]
        try:
            dialect = make_url(url).get_dialect()
            is_known = dialect.name in BACKENDS and not dialect.is_async
            if is_known:
                dialect.import_dbapi()
        except NoSuchModuleError:
            raise ValueError(f"unknown dialect {scheme!r}; {EXPECTED}") from None
        except ImportError as exc:
            raise ValueError(f"the driver of {scheme}:// ({exc.name}) is not installed; {EXPECTED}") from exc
        except (ArgumentError, ValueError):
            # Their messages quote the URL.
            raise ValueError(f"it cannot be read as a database's URL; {EXPECTED}") from None
        if not is_known:
            raise ValueError(f"no catalog can be in {scheme}://; {EXPECTED}")
