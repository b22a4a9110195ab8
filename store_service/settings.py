"""The store's settings, from `HOTSLOT_*` variables and flags."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from hotslot.ids import DEFAULT_TENANT
from shared.audit.settings import AuditSettings
from shared.metrics.settings import Observed
from shared.outgoing_http import networks_of
from shared.process_tuning import KEPT_FREE_BYTES, MAX_ARENAS
from shared.quotas.settings import QuotaSettings
from shared.server.stream_places import STALL_S
from shared.settings import MAX_START_PAUSE_S, ListenAddress, RedisUrl, SecretUrl, TextList
from shared.telemetry import LogFormat, LogLevel
from shared.transport_settings import RedisTransport, ServerTransport
from store_service.admission.settings import AdmissionLimits
from store_service.admission.slices import BLOCK_BYTES, SLICE_BYTES
from store_service.catalog.url import CatalogUrl
from store_service.content.arrivals import MEMORY_BYTES as ARRIVALS_BYTES
from store_service.content.waiting import CollectionOptions
from store_service.sources.access import SourceAccess
from store_service.sources.hub.folder import HubOptions
from store_service.sources.remote.options import WebOptions
from store_service.sources.sources import Sources

BASE_BYTES = 192 * 1024**2
"""The process without work: the interpreter, its libraries, the catalog's caches."""
FREED_BYTES = MAX_ARENAS * KEPT_FREE_BYTES
"""Freed bytes that the C library keeps."""
STREAM_BYTES = 4 * 1024**2
"""Two chunks of a blob, one of them twice while it becomes a message, and gRPC's own copy."""
OBJECT_BYTES = 16 * 1024**2
ADMISSION_BYTES = 48 * 1024**2 + 2 * BLOCK_BYTES + 8 * SLICE_BYTES
"""Bytes of one admission: the largest header with what is planned from it and the config, two blocks of a transposed
tensor, and slices as they are read, checked, converted and written."""


class StoreSettings(ServerTransport, RedisTransport, AuditSettings, QuotaSettings, Observed):
    """Imports, validates and serves adapters."""

    listen: ListenAddress = "127.0.0.1:7400"
    """host:port to serve on; [::] is every interface, port 0 takes a free port. Or unix:/path."""
    data_dir: Path = Path("hotslot-store")
    """Folder for blobs, uploads and the SQLite catalog; one store process at a time."""
    catalog_url: CatalogUrl | None = None
    """The catalog's database as a SQLAlchemy URL, for example postgresql+psycopg://…; none means SQLite in data_dir."""
    redis_url: RedisUrl | None = None
    """Redis for PlacementService; without it that service is not served."""
    import_roots: TextList = ()
    """Folders of this machine that ImportAdapter may read, separated by commas; none means no folder."""

    signature_policy_file: Path | None = None
    """JSON file with the signers that tenants' adapters must be signed by (docs/how-to/signed-adapters.md); none means
    that no signature is asked for. Changes hold for the next adapter."""

    hub_endpoint: str = "https://huggingface.co"
    """Endpoint that Hugging Face repositories are fetched from: the hub or a mirror."""
    hub_token: SecretStr = SecretStr("")
    """Token for private repositories; never shown, and sent to hub_endpoint only."""
    hub_token_tenants: TextList = ()
    """Tenants who may import with hub_token; the others see public repositories only. Without principals_file a caller
    chooses its tenant, so that naming one here opens these repositories to all callers."""
    hub_redirect_hosts: TextList = ("huggingface.co", "hf.co")
    """Hosts, with their subdomains, that hub_endpoint may redirect downloads to."""
    hub_private_networks: TextList = ()
    """Networks with addresses that are not public (10.1.0.0/16, fd00::/8), separated by commas, in which hub_endpoint
    and hub_redirect_hosts may be; no others are connected to. An endpoint that is written as an address needs none."""
    hub_timeout_s: float = Field(default=30.0, gt=0)
    """Longest time in which the hub sends nothing before an attempt is given up."""
    hub_attempts: int = Field(default=4, ge=1)
    """Attempts at each file; a further one goes on where the last one ended."""

    source_access_file: Path | None = None
    """JSON file with the prefixes of object storage and of web servers that tenants may import from, and credentials
    for each (docs/how-to/import-from-object-storage.md); none means that no such import is allowed. A change holds for
    the next import."""
    source_private_networks: TextList = ()
    """Networks with addresses that are not public, separated by commas, in which the servers of source_access_file may
    be; no others are connected to."""
    source_ca_file: Path | None = None
    """Certificates that those servers' must lead to, beside the public ones."""
    source_timeout_s: float = Field(default=30.0, gt=0)
    """Longest time in which such a server sends nothing before an attempt is given up."""
    source_attempts: int = Field(default=4, ge=1)
    """Attempts at each of its files without progress; a further one goes on where the last one ended."""

    blob_url: SecretUrl | None = None
    """Object storage that keeps every blob too: s3://, gs://, az:// or file://, with a prefix for this store alone;
    credentials come from the provider's own variables (AWS_…). None means that the only copies are in data_dir."""
    blob_cache_bytes: int = Field(default=0, ge=0)
    """Most bytes of the disk that blobs take; beyond it the least recently used go that blob_url or a Hugging Face
    commit has too, and new versions are refused when too few do. 0 means no bound."""
    blob_lease_s: float = Field(default=300.0, ge=0)
    """Least time for which a blob stays on the disk after a reference to it was resolved."""
    compiled_code_bytes: int = Field(default=0, ge=0)
    """Most bytes of the disk that compiled code of workers takes, the least recently used going first; 0 keeps none."""
    operator_tenants: TextList = (DEFAULT_TENANT,)
    """Tenants of the store's operators: they may move and delete the names of base models that are others'."""
    compiled_code_tenant: str = DEFAULT_TENANT
    """The one tenant whose workers may read and write compiled code: that of the workers' operator."""
    max_restores: int = Field(default=2, ge=1)
    """Blobs that are brought back to the disk at the same time; more wait."""
    scrub_every_s: float = Field(default=86400.0, ge=0)
    """Time between two digests of every blob on the disk, to find rot; 0 means never."""
    scrub_bytes_per_s: int = Field(default=32 * 1024**2, ge=1)
    """Most bytes a second that scrubbing reads."""

    max_rank: int = Field(default=AdmissionLimits().max_rank, ge=1, le=8192)
    """Largest rank that an adapter may have."""
    max_adapter_bytes: int = Field(default=AdmissionLimits().max_weights_bytes, ge=1)
    """Largest file of a checkpoint."""
    max_read_streams: int = Field(default=64, ge=1)
    """Blobs that are read at the same time, with about 2 MiB of memory each; more are refused for a moment. One tenant
    may have most of them while others want none (so for uploads and watches, too); streams whose readers sleep give
    way."""
    max_uploads: int = Field(default=64, ge=1)
    """Files that are received at the same time, with about 4 MiB of memory each; more are refused for a moment."""
    max_watches: int = Field(default=2048, ge=1)
    """Callers that follow changes of the catalog or of placements; more are refused for a moment."""
    stream_stall_s: float = Field(default=STALL_S, gt=0)
    """Longest time in which a stream's caller takes nothing, or sends nothing, before the stream is ended. At 10 kB/s
    the messages of an upload take 105 s each."""
    verify_every_s: float = Field(default=60.0, ge=0)
    """Time for which a blob that was read and found whole is served undigested; 0 digests it every time."""
    max_admissions: int = Field(default=2, ge=1)
    """Checkpoints that are validated at the same time; more wait, and tenants take turns by the time theirs took."""
    max_waiting_admissions: int = Field(default=1024, ge=1)
    """Checkpoints that may wait for that; more are refused for a moment. Tenants share these places."""
    max_imports: int = Field(default=4, ge=1)
    """Imports that fetch at the same time, each with its files on the disk until it is admitted; more wait."""
    import_linger_s: float = Field(default=30.0, ge=0)
    """Time for which an import goes on when all its callers have gone, before it is cancelled."""
    import_refusal_ttl_s: float = Field(default=10.0, ge=0)
    """Time for which an import is refused again unasked when the hub had no such thing or its content was not valid."""
    num_io_threads: int = Field(default=16, ge=1)
    """Threads for files."""
    num_catalog_threads: int = Field(default=4, ge=1, le=8)
    """Threads for looking things up in the catalog, and as many again for changing it."""
    max_catalog_wait_s: float = Field(default=1.0, gt=0)
    """Longest wait of a call for one of those threads; more are refused for a moment, as are those whose
    callers would have given up by then."""
    upload_ttl_s: float = Field(default=6 * 3600.0, ge=0)
    """Time for which uploaded files are kept after they were last asked for, whether admitted or not; as with
    unreferenced_grace_s, time counts in which a store saw them lie there."""
    delete_grace_s: float = Field(default=7 * 86400.0, ge=0)
    """Time for which a deleted adapter can be undeleted."""
    unreferenced_grace_s: float = Field(default=24 * 3600.0, ge=0)
    """Time for which blobs stay that no version refers to. Time counts in which a store ran and saw them unreferenced,
    from when it first did; it is remembered over restarts, and no clock that jumps shortens it. A deleted version takes
    room for as long: a store that is published to and deleted from all day may want less."""
    retention_grace_s: float = Field(default=300.0, ge=0)
    """Least time for which retention leaves a version after it lost its last tag, or was asked for by its digest, and
    leaves all after the store started.
    Workers ask every minute for what they pin, and for digests in their defaults."""
    collect_every_s: float = Field(default=300.0, gt=0)
    """Time between two passes that remove old uploads and unreferenced blobs."""
    adopt_blobs: str = ""
    """Blobs to take over that are not known to be this catalog's, as the refusal to start names them: the id of the
    catalog that they belong to, or `unowned`. No others are taken over."""
    max_connection_age_s: float = Field(default=0.0, ge=0)
    """Age at which a connection takes no new calls; then its client connects anew, and what runs goes on. 0 means as
    long as the client likes. Set it where others than hotslot's own clients call: the store fails no call of theirs on
    SIGTERM if it can wait until their connections have ended so. A store that is alone is away for as much longer."""
    drain_delay_s: float = Field(default=0.0, ge=0)
    """On SIGTERM: how long load balancers may take to learn that the store leaves. Calls are taken for so long, and for
    1.1 × max_connection_age_s + 0.5 s more."""
    grace_s: float = Field(default=20.0, ge=0)
    """On SIGTERM, after that: how long calls may take to finish."""

    start_pause_s: float = Field(default=0.0, ge=0, le=MAX_START_PAUSE_S)
    """Pause of a start that failed before the process ends, for supervisors that start it again at once, as Podman
    does. Kubernetes waits by itself."""
    log_level: LogLevel = "info"
    """Least severe messages that are logged."""
    log_format: LogFormat = "console"
    """console for people, json for machines."""

    @field_validator("hub_private_networks", "source_private_networks")
    @classmethod
    def _are_networks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        networks_of(names)
        return names

    @model_validator(mode="after")
    def _token_has_tenants(self) -> Self:
        if self.hub_token.get_secret_value() and not self.hub_token_tenants:
            raise ValueError("hub_token is used for no tenant; name those who may import with it in hub_token_tenants")
        return self

    @property
    def memory_bound_bytes(self) -> int:
        """Most bytes that the process holds, so that its container's limit can be chosen.

        BASE_BYTES, FREED_BYTES and what is for weights that arrive, and for each that may be under way at the same
        time: a blob being read, or an import fetching, 4 MiB; an admission, or a restore, which may be one,
        ADMISSION_BYTES, however large the adapter, and 16 MiB for object storage. Each of max_uploads adds 4 MiB.
        Adapters that find no room among those that arrive are on the disk only, however many come.
        """
        streams_bytes = (self.max_read_streams + self.max_imports) * STREAM_BYTES
        num_admissions = self.max_admissions + self.max_restores
        always_bytes = BASE_BYTES + FREED_BYTES + ARRIVALS_BYTES
        return always_bytes + streams_bytes + num_admissions * (ADMISSION_BYTES + OBJECT_BYTES)

    @property
    def collection_options(self) -> CollectionOptions:
        """Times after which things are removed."""
        return CollectionOptions(self.unreferenced_grace_s, self.upload_ttl_s, 2 * self.collect_every_s)

    @property
    def admission_limits(self) -> AdmissionLimits:
        """The limits of admission."""
        return AdmissionLimits(max_rank=self.max_rank, max_weights_bytes=self.max_adapter_bytes)

    @property
    def sources(self) -> Sources:
        """Places that checkpoints may come from."""
        return Sources(
            import_roots=tuple(Path(root) for root in self.import_roots),
            max_bytes=self.max_adapter_bytes,
            hub=HubOptions(
                endpoint=self.hub_endpoint,
                token=self.hub_token.get_secret_value(),
                redirect_hosts=self.hub_redirect_hosts,
                private_networks=networks_of(self.hub_private_networks),
                timeout_s=self.hub_timeout_s,
                num_attempts=self.hub_attempts,
            ),
            hub_token_tenants=self.hub_token_tenants,
            access=SourceAccess(self.source_access_file),
            web=WebOptions(
                private_networks=networks_of(self.source_private_networks),
                ca_file=self.source_ca_file,
                timeout_s=self.source_timeout_s,
                num_attempts=self.source_attempts,
            ),
        )
