"""The controller's settings, from `HOTSLOT_*` variables and flags."""

from pathlib import Path

from pydantic import Field

from hotslot.ids import DEFAULT_TENANT
from shared.settings import MAX_START_PAUSE_S, DialledAddress
from shared.telemetry import LogFormat, LogLevel
from shared.transport_settings import CallerTransport, OptionalListenAddress

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Folder with the token and the authority of a pod's account."""


class ControllerSettings(CallerTransport):
    """Writes to the store what the Adapter resources of one namespace want there."""

    store: DialledAddress = "127.0.0.1:7400"
    """host:port of the adapter store."""
    tenant: str = DEFAULT_TENANT
    """Tenant whose adapters the namespace's resources are; its principal needs the scopes read, publish and admin."""
    kubernetes_url: str = Field(default="https://kubernetes.default.svc", pattern=r"^https?://")
    """Address of the Kubernetes API."""
    kubernetes_token_file: Path = ACCOUNT / "token"
    """File with the token of the pod's account; read for each request."""
    kubernetes_ca_file: Path | None = ACCOUNT / "ca.crt"
    """PEM file with the authority of the Kubernetes API."""
    kubernetes_namespace: str = ""
    """Namespace whose resources are followed; empty means the pod's own."""
    resync_s: float = Field(default=60.0, gt=0)
    """Time between two looks at every resource, to bring back what others changed in the store and to count workers."""
    retry_refused_s: float = Field(default=600.0, gt=0)
    """Time after which an adapter that was refused is tried again unchanged."""
    max_imports: int = Field(default=4, ge=1)
    """Resources that are worked on at the same time; the store bounds its imports by itself."""
    health_listen: OptionalListenAddress = ""
    """host:port of the health service for probes, in plaintext; empty means nowhere."""

    start_pause_s: float = Field(default=0.0, ge=0, le=MAX_START_PAUSE_S)
    """Pause of a start that failed before the process ends, for supervisors that start it again at once."""
    log_level: LogLevel = "info"
    """Least severe messages that are logged."""
    log_format: LogFormat = "console"
    """console for people, json for machines."""
