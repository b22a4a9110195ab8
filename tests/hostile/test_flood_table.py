"""Every flood of the benchmark against real processes: none is refused, nothing fails, what is held stays bounded.

`python -m tools.bench.isolation` takes the times in a quiet hour; here a machine that does other things takes part.
"""

import pytest

from tools.bench.floods import FLOODS
from tools.bench.isolation import run

MAX_GROWTH_MIB = 192
MAX_DESCRIPTORS = 600
"""The gateway holds the connections of its clients."""
MAX_DISK_KIB = 16_384
LOOSE = 5.0


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(600)
@pytest.mark.parametrize("service", sorted(FLOODS))
async def test_no_flood_takes_more_than_its_share(service: str) -> None:
    found = await run([f"{service}/"], for_s=3.0, is_controlled=False)
    assert {each.flood for each in found} == FLOODS[service].keys()
    for each in found:
        assert not each.refused, each
        assert each.answered > 10, each
        assert each.while_p50_ms < LOOSE * each.calm_p50_ms + 20, each
        assert each.held["internal"] == each.before["internal"], each
        assert each.held["rss_mib"] - each.before["rss_mib"] < MAX_GROWTH_MIB, each
        assert each.held["descriptors"] < MAX_DESCRIPTORS, each
        assert each.held["disk_kib"] - each.before["disk_kib"] < MAX_DISK_KIB, each
