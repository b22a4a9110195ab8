"""Folders of repositories, as messages name them."""

import pytest

from hotslot.sources import HubName, parse_source
from store_service.sources.hub.folder import HubFolder, HubOptions


@pytest.mark.parametrize("revision", ["", "v1", "refs/pr/3"])
@pytest.mark.parametrize("subfolder", ["", "a", "checkpoints/last"])
def test_a_folder_is_named_as_people_write_it(revision: str, subfolder: str) -> None:
    name = HubFolder("org/name", revision, subfolder, HubOptions(), 1).key
    assert parse_source(name) == HubName("org/name", revision, subfolder)
