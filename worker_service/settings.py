"""The worker's settings, from `HOTSLOT_*` variables and flags."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from hotslot.endpoints import Target, listen_endpoint
from hotslot.ids import DEFAULT_TENANT
from shared.audit.settings import AuditSettings
from shared.metrics.settings import Observed
from shared.quotas.settings import QuotaSettings
from shared.server.stream_places import STALL_S
from shared.settings import (
    MAX_START_PAUSE_S,
    AdvertisedAddress,
    DialledAddress,
    ListenAddress,
    RedisUrl,
    TextList,
)
from shared.telemetry import LogFormat, LogLevel
from shared.transport_settings import CallerTransport, RedisTransport, ServerTransport


def _split(value: object) -> object:
    if value == "auto":
        return []
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


MIN_SECRET_LENGTH = 16


def _zero_if_auto(value: object) -> object:
    return 0 if value == "auto" else value


AutoNumber = Annotated[int, BeforeValidator(_zero_if_auto)]
"""A number that the device decides where it is 0, or the word auto."""
NumberList = Annotated[tuple[Annotated[int, Field(ge=1)], ...], NoDecode, BeforeValidator(_split)]
"""Several numbers, separated by commas."""


class WorkerSettings(ServerTransport, CallerTransport, RedisTransport, AuditSettings, QuotaSettings, Observed):
    """Serves LoRA adapters on one compiled base model."""

    model: str = Field(min_length=1)
    """The base model: a folder, or `org/name` on the Hugging Face Hub."""
    model_name: str = ""
    """Public name of the base model, under which adapters refer to it; empty means what `model` says."""
    listen: ListenAddress = "127.0.0.1:7500"
    """host:port to serve on; [::] is every interface, port 0 takes a free port. Or unix:/path."""
    advertise: AdvertisedAddress = ""
    """host:port under which others reach this worker, an IPv6 address in brackets; empty means what it listens on."""
    store: DialledAddress = "127.0.0.1:7400"
    """host:port of the adapter store; dns:///host:port spreads calls over all addresses of a name."""
    use_proxy: bool = False
    """Call the store and other workers through the proxy that grpc_proxy, https_proxy or http_proxy names; no_proxy
    excludes hosts. Otherwise these variables are for downloads from the hub alone."""
    redis_url: RedisUrl | None = None
    """Redis for coordination; without it the worker serves alone."""

    forward: bool = True
    """Send requests on to the worker that has their adapters and room; needs Redis."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Element type in which the model computes."""
    weights: Literal["full", "int8"] = "full"
    """Form of the base model's weights. full keeps them in the element type; int8, on CPU in bfloat16 and float32,
    keeps linears, head and embedding in 8 bits with a scale for each output: half the memory to read, answers a little
    different. Adapters stay in the element type."""
    device: str = "cpu"
    """Device that computes, as torch names it: cpu, cuda, cuda:1."""
    num_slots: AutoNumber = Field(default=0, ge=0, le=1024)
    """Slots in every target module. 0, or auto: 8 on CPU; on CUDA 8 to 64, as many as take an eighth of the memory that
    the weights leave."""
    slot_rank: int = Field(default=16, ge=1, le=1024)
    """Ranks of one slot; an adapter of rank r takes ceil(r / slot_rank) slots."""
    max_rank: int = Field(default=64, ge=1, le=8192)
    """Largest rank that an adapter may have."""
    max_sequences: AutoNumber = Field(default=0, ge=0, le=4096)
    """Rows: sequences that are computed at the same time. 0, or auto: 8 on CPU; on CUDA one for every 1,024 tokens of
    the KV cache, up to 128; fewer where the largest bucket or the KV cache hold fewer."""
    max_waiting: int = Field(default=256, ge=0)
    """Sequences that may wait while all rows are taken; more are refused, and with 0 none waits.

    Requests may wait for adapters to be loaded as many as these and the rows together.
    """
    kv_tokens: AutoNumber = Field(default=0, ge=0)
    """Tokens that the KV cache holds over all sequences. 0, or auto: 16,384 on CPU; on CUDA all that the memory holds
    beside weights, slots and a tenth that is left free."""
    block_tokens: int = Field(default=0, ge=0, le=4096)
    """Tokens of one block of the KV cache: what sequences take and share it by. 0 means 16, or 256 where attention on
    CUDA needs that."""
    prefix_cache: bool = True
    """Keep the keys and values of prompts and answers for later requests of the same tenant and adapters that begin
    alike, as far as the KV cache has room."""
    share_base_prefixes: bool = False
    """Share cached prefixes of requests without adapters between tenants. Then answering times tell a tenant whether
    another has sent a prompt that begins alike."""
    ageing_s: float = Field(default=10.0, gt=0, le=3600)
    """Time for which a priority is passed over by the same tenant's higher ones until it counts as one higher."""
    max_sequence_tokens: int = Field(default=0, ge=0)
    """Longest prompt and answer together; 0 means the model's context, as far as the KV cache holds it."""
    buckets: NumberList = ()
    """Numbers of tokens of one step to compile for, ascending. Empty, or auto: 1,4,8,32,128 on CPU, and up to 2,048 on
    CUDA."""
    target_modules: TextList = ()
    """Last names of the modules that get slots, for example q_proj,v_proj; empty means all linears in the layers, as
    does the word all-linear. The token embedding and the head have none unless they are named:
    all-linear,embed_tokens,lm_head."""
    compile: bool = True
    """Turned off, the same code runs uncompiled: a quick start, slow steps."""
    cpu_kernels: bool = True
    """Compute steps of few tokens on CPU with kernels of our own, built at the first start; turned off, torch does."""
    cuda_kernels: bool = True
    """On CUDA, compute what adapters add with kernels of our own that read no slots but those that are on; turned off,
    or without Triton, torch computes all slots."""
    cuda_graphs: bool = True
    """On CUDA, capture what each kind of step launches at the start, and launch it at once later; turned off, every
    step is launched piece by piece, which bounds small models and few rows by the host."""
    varlen_attention: bool = True
    """On CUDA, in bfloat16 and float16, attend with torch's own paged kernels; turned off, with portable operators."""
    num_threads: int = Field(default=0, ge=0)
    """Threads of one operation on CPU; 0 means one for each core."""
    cache_dir: Path | None = None
    """Folder of compiled code between starts; empty means the compiler's own default."""
    share_compiled_code: Literal["off", "fetch", "fetch-and-upload"] = "off"
    """Take the store's compiled code at start rather than compile the same again, and give it what was compiled. This
    runs native code from the store, so it needs compiled_code_secret or pool_secret_file, and cache_dir to keep the
    code in."""
    compiled_code_secret: SecretStr = SecretStr("")
    """Seals compiled code: only what a worker with the same secret has sealed is fetched and run. 16 characters or
    more; the store does not have it. Without it a key from pool_secret_file does, which the store may have as well."""
    compiled_code_tenant: str = DEFAULT_TENANT
    """The tenant for whom the store keeps compiled code."""
    max_compiled_code_bytes: int = Field(default=512 * 2**20, ge=2**20)
    """Largest archive of compiled code that is made or taken."""

    host_cache_bytes: int = Field(default=2 * 2**30, ge=0)
    """Host memory for adapters. Should hold at least those that are in slots. On CPU an eighth more may be in use, and
    up to 768 MiB beside it are kept for the next ones."""
    disk_cache_dir: Path | None = None
    """Folder in which fetched adapters are kept on the local disk, for the next start too; empty means none. Workers of
    one machine may share it."""
    disk_cache_bytes: int = Field(default=16 * 2**30, ge=0)
    """Most bytes of the disk that it takes, the least recently used going first; workers that share it set the same."""
    max_parallel_loads: int = Field(default=4, ge=1, le=64)
    """Adapters that are pulled from the store at a time."""
    preload_s: float = Field(default=5.0, ge=0)
    """Longest time in which a start loads versions that others hold and this worker will be a home of; needs Redis."""
    staleness_s: float = Field(default=2.0, ge=0, le=3600)
    """Time for which the store's answer to a reference is trusted."""
    shared_unconfirmed_s: float = Field(default=300.0, ge=0)
    """Longest time for which an adapter that another tenant shares is served while the store does not answer: it might
    be shared no more. A tenant's own adapters are served for as long as they are in memory."""

    engine_silence_s: float = Field(default=30.0, ge=0.1)
    """Longest silence of the engine, which answers between any two steps. Then the worker ends what it runs,
    so that it is tried elsewhere, and takes nothing new. After the fourth such silence in a row the process ends with
    exit code 1, to be started anew. Loading a model and compiling come before and never count."""
    lease_s: float = Field(default=10.0, ge=0.1)
    """Time for which others take this worker for alive without a heartbeat."""
    max_connection_age_s: float = Field(default=0.0, ge=0)
    """Age at which a connection takes no new requests; then its client connects anew, perhaps to another worker, and
    what runs goes on. 0 means as long as the client likes. Behind a load balancer that spreads connections set it: a
    worker loses no request on SIGTERM if it can wait until its connections have ended so."""
    stream_stall_s: float = Field(default=STALL_S, gt=0)
    """Longest time in which a stream's reader takes nothing of its messages before its request is ended."""
    drain_delay_s: float = Field(default=0.0, ge=0)
    """On SIGTERM: how long load balancers may take to learn that the worker leaves. Requests are taken for so long, and
    for 1.1 × max_connection_age_s + 0.5 s more."""
    drain_grace_s: float = Field(default=30.0, ge=0)
    """On SIGTERM, after that: how long running requests may take to finish."""
    start_pause_s: float = Field(default=0.0, ge=0, le=MAX_START_PAUSE_S)
    """Pause of a start that failed before the process ends, for supervisors that start it again at once, as Podman
    does. Kubernetes waits by itself."""
    log_level: LogLevel = "info"
    """Least level of events that are logged."""
    log_format: LogFormat = "console"
    """json for machines, console for people."""

    @model_validator(mode="after")
    def _check_advertise(self) -> "WorkerSettings":
        if self.redis_url is not None and not self.advertise and isinstance(listen_endpoint(self.listen), Target):
            raise ValueError("advertise: must be set, since other workers cannot reach a Unix socket")
        return self

    @model_validator(mode="after")
    def _check_sharing(self) -> "WorkerSettings":
        secret = self.compiled_code_secret.get_secret_value()
        if secret and len(secret) < MIN_SECRET_LENGTH:
            raise ValueError(
                f"compiled_code_secret: found {len(secret)} characters, expected {MIN_SECRET_LENGTH} or more"
            )
        if self.share_compiled_code != "off" and not ((secret or self.pool_secret_file) and self.cache_dir):
            raise ValueError("share_compiled_code: needs cache_dir, and compiled_code_secret or pool_secret_file")
        return self
