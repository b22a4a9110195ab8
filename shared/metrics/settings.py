"""Settings of what a process tells about itself."""

from pydantic import Field

from shared.settings import Settings
from shared.transport_settings import OptionalListenAddress


class Observed(Settings):
    """Metrics of a process, and the log lines of slow requests."""

    metrics_listen: OptionalListenAddress = ""
    """host:port on which /metrics is served to Prometheus, by the certificate of the process where it has one; empty
    means nowhere. Metrics name adapters of all tenants: keep the port from those who may not know them."""
    metrics_tenants: bool = False
    """Tell tenants apart in the metrics of requests, which then have a series for each tenant and adapter."""
    slow_request_s: float = Field(default=0.0, ge=0)
    """Duration from which a request is logged with the time of each of its stages; 0 means none."""
