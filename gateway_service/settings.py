"""The gateway's settings, from `HOTSLOT_*` variables and flags."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from gateway_service.tool_formats import checked_parsers
from hotslot.clients.defaults import GENERATE_TIMEOUT_S
from hotslot.endpoints import dialled_endpoint
from hotslot.errors import InvalidEndpointError
from hotslot.formats.principals import Scope
from hotslot.rpc.message_sizes import MAX_GENERATE_BYTES
from shared.audit.settings import AuditSettings
from shared.metrics.settings import Observed
from shared.quotas.settings import QuotaSettings
from shared.server.stream_places import STALL_S
from shared.settings import MAX_START_PAUSE_S, ListenAddress, split_text
from shared.telemetry import LogFormat, LogLevel
from shared.transport_settings import CallerTransport, Transport

DEFAULT_LISTEN = "127.0.0.1:7600"


def _dialled_or_none(text: str) -> str:
    try:
        return str(dialled_endpoint(text)) if text else ""
    except InvalidEndpointError as exc:
        raise ValueError(exc.problem) from exc


OptionalAddress = Annotated[str, AfterValidator(_dialled_or_none)]
"""host:port to call; empty when there is none."""


class GatewaySettings(CallerTransport, AuditSettings, QuotaSettings, Observed):
    """Speaks OpenAI's HTTP, and calls workers by gRPC."""

    gateway_listen: ListenAddress = DEFAULT_LISTEN
    """host:port to serve HTTP on; [::] is every interface, port 0 takes a free port. Or unix:/path."""
    gateway_cert_file: Path | None = None
    """PEM file with the certificate of the HTTP listener, which speaks HTTPS then."""
    gateway_key_file: Path | None = None
    """PEM file with the key of gateway_cert_file."""
    gateway_client_ca_file: Path | None = None
    """PEM file with the certificates that those of HTTP clients must lead to; with it each must show one."""
    principals_file: Path | None = None
    """JSON file of the principals who may call, with hashes of their tokens, which are API keys here (`hotslot token`).
    Without it, and without issuers_file, each caller is believed; a fleet that knows its callers needs one."""
    issuers_file: Path | None = None
    """JSON file of the issuers whose JSON Web Tokens are API keys here; read again when it changes."""
    gateway_anonymous_scopes: Annotated[tuple[Scope, ...], NoDecode, BeforeValidator(split_text)] = ()
    """Scopes of callers without an API key, in the default tenant (read,use,publish,admin); empty refuses them."""
    gateway_worker: OptionalAddress = ""
    """The one worker that all requests go to, as a sidecar has it; empty means the best worker of the fleet, which the
    store's placement service names."""
    store: OptionalAddress = ""
    """host:port of the adapter store: it lists adapters, imports them and places requests. Only with gateway_worker may
    it be left out."""

    gateway_max_body_bytes: int = Field(default=MAX_GENERATE_BYTES, ge=1024)
    """Largest body of a request; workers take requests of 4 MiB."""
    gateway_max_header_bytes: int = Field(default=32 * 1024, ge=1024)
    """Largest head of a request: its first line and headers together."""
    gateway_max_requests: int = Field(default=512, ge=1)
    """Generations under way at the same time; more are refused for a moment. Tenants share these places: one may have
    most of them while others want none."""
    gateway_max_connections: int = Field(default=2048, ge=1)
    """Connections at the same time; more are closed with 503."""
    gateway_max_calls_per_s: float = Field(default=100.0, ge=0)
    """Most requests a second of one principal, or of one address without an API key, where callers are known; those of
    a second may come at once. More are refused with 429, and hear of it a second later. 0 is no bound."""
    gateway_head_timeout_s: float = Field(default=20.0, gt=0)
    """Longest time until the head of a request has arrived, from its first byte or the connection's beginning."""
    gateway_body_timeout_s: float = Field(default=60.0, gt=0)
    """Longest time until the body of a request has arrived."""
    gateway_idle_s: float = Field(default=75.0, gt=0)
    """Time for which a connection is kept for its client's next request."""
    gateway_timeout_s: float = Field(default=GENERATE_TIMEOUT_S, gt=0)
    """Longest time of a generation."""
    gateway_stall_s: float = Field(default=STALL_S, gt=0)
    """Longest time in which the reader of a stream takes nothing before the stream is ended."""
    gateway_metrics: bool = False
    """Serve /metrics beside the API, without an API key, as pickers of workers expect it. What it tells is that of
    metrics_listen: names of the adapters of all tenants."""
    gateway_worker_metrics: OptionalAddress = ""
    """host:port of metrics_listen of the worker beside the gateway, whose metrics are told with the gateway's own; by
    TLS where calls to the worker use it, with tls_worker_name."""
    gateway_tool_parser: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(split_text), AfterValidator(checked_parsers)
    ] = ("none",)
    """Format in which the models write calls of tools: hermes (Hermes, Qwen 2.5, Qwen 3), llama3_json (Llama 3.1, 3.2).
    Chats that have tools then get calls as `tool_calls`; none leaves them in the text. A base model of another format
    has BASE_MODEL=PARSER, by name or digest."""
    gateway_ui: bool = True
    """Serve /ui, a page that shows workers and adapters as they are now and tries prompts. Its files are for all, all
    else is asked for with the caller's API key."""
    gateway_lora_updates: bool = False
    """Serve /v1/load_lora_adapter and /v1/unload_lora_adapter, which change the adapters that workers hold for all
    tenants."""

    drain_delay_s: float = Field(default=0.0, ge=0)
    """On SIGTERM: how long load balancers may take to learn that the gateway leaves; requests are taken meanwhile."""
    grace_s: float = Field(default=30.0, ge=0)
    """On SIGTERM, after that: how long requests may take to finish."""
    start_pause_s: float = Field(default=0.0, ge=0, le=MAX_START_PAUSE_S)
    """Pause of a start that failed before the process ends, for supervisors that start it again at once."""
    log_level: LogLevel = "info"
    """Least severe messages that are logged."""
    log_format: LogFormat = "console"
    """console for people, json for machines."""

    @property
    def gateway_transport(self) -> Transport:
        """Transport of the HTTP listener."""
        return Transport(self.gateway_cert_file, self.gateway_key_file, self.gateway_client_ca_file, self.insecure)
