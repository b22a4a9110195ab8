"""Archives: what they say of themselves takes no memory beyond a bound."""

import tarfile
import threading
from pathlib import Path

import pytest

from hotslot.errors import SourceNotFoundError
from hotslot.ids import digest_of
from hotslot.source_urls import ArchiveUrl
from store_service.sources.access import SourceGrant
from store_service.sources.remote.archive import MAX_HEADER_BYTES, ArchiveContent
from store_service.sources.remote.options import WebOptions


def archive_with_header(path: Path, size_bytes: int) -> Path:
    """An archive whose first member is a header of so many bytes, all of them there."""
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, size_bytes
    member = tarfile.TarInfo("adapter_config.json")
    path.write_bytes(header.tobuf() + b"a" * size_bytes + bytes(-size_bytes % 512) + member.tobuf() + bytes(1024))
    return path


@pytest.mark.parametrize("size_bytes", [MAX_HEADER_BYTES + 512, 4 * MAX_HEADER_BYTES])
def test_a_header_that_is_read_whole_is_bounded(size_bytes: int, tmp_path: Path) -> None:
    url = ArchiveUrl("models.example.com", "/bot.tar", digest_of(b""))
    grant = SourceGrant(prefix="https://models.example.com", tenants=("*",))
    content = ArchiveContent(url, grant, WebOptions(), 1 << 30)
    archive = archive_with_header(tmp_path / "bot.tar", size_bytes)
    with pytest.raises(SourceNotFoundError, match="a header has"):
        content._take_out(archive, tmp_path, threading.Event())
