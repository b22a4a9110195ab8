"""Workers of the fleet and their placements, in Redis: hints with leases, never the only copy of anything.

Decisions: docs/decisions/coordination.md
"""

import sys
from types import ModuleType
from typing import cast

_SDK = "opentelemetry.sdk.metrics"

# redis-py imports OpenTelemetry's SDK, two hundred modules, wherever that is installed, and uses it only where it is
# asked for metrics of its own. This first import of it finds none.
if _SDK not in sys.modules:
    sys.modules[_SDK] = cast(ModuleType, None)
    try:
        import redis.observability  # noqa: F401
    finally:
        del sys.modules[_SDK]
