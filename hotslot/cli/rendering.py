"""Tables and values as people read them. Pure: the time is passed in."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from rich.table import Table

from hotslot.cli.fitted_table import FittedTable
from hotslot.contexts import Contexts
from hotslot.contract.catalog import Adapter, AdapterPolicy, BaseModel, Version
from hotslot.contract.placement import Placement, Worker
from hotslot.contract.quotas import QuotaKind, TenantQuota

SHORT_DIGEST_LENGTH = 12


def short_digest(digest: str) -> str:
    """The first 12 hex digits of a digest."""
    return digest.removeprefix("sha256:")[:SHORT_DIGEST_LENGTH]


def digest_text(digest: str, *, wide: bool) -> str:
    """A digest in a table."""
    return digest if wide else short_digest(digest)


def human_size(size_bytes: int) -> str:
    """Bytes in decimal units, as file managers show them."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def human_age(moment: datetime | None, now: datetime) -> str:
    """Age of a moment, as people read it."""
    if moment is None:
        return "-"
    seconds = max(0, int((now - moment).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def human_moment(moment: datetime) -> str:
    """A moment to the minute, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def human_duration(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def human_period(seconds: float) -> str:
    """A period as `--older-than` takes it, in the largest unit that it is a whole number of."""
    for unit, unit_s in (("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds // unit_s:g}{unit}"
    return f"{seconds:g}s"


def table(*columns: str, right: Sequence[str] = (), gives_way: Sequence[str] = ()) -> FittedTable:
    """A plain aligned table; the columns named in `right` hold numbers."""
    return FittedTable(columns, right, gives_way)


def adapters_table(adapters: Iterable[Adapter], now: datetime, *, wide: bool = False) -> FittedTable:
    """`hotslot ls`."""
    listed = list(adapters)
    columns = ["NAME", "TAGS", "VERSIONS", "NEWEST", "RANK", "SIZE", "BASE MODEL", "CHANGED"]
    has_deleted = any(adapter.purge_time for adapter in listed)
    if has_deleted:
        columns.append("CAN BE UNDELETED UNTIL")
    gives_way = ("BASE MODEL", "CHANGED", "NEWEST", "RANK", "VERSIONS", "SIZE", "TAGS")
    made = table(*columns, right=("VERSIONS", "RANK", "SIZE"), gives_way=gives_way)
    for adapter in listed:
        newest = adapter.latest_version
        row = [
            adapter.name + (" (deleted)" if adapter.delete_time else ""),
            ", ".join(tag.name for tag in adapter.tags) or "-",
            str(adapter.num_versions),
            digest_text(newest.digest, wide=wide) if newest else "-",
            str(newest.max_rank) if newest else "-",
            human_size(newest.weights_size_bytes) if newest else "-",
            newest.base_model if newest else "-",
            human_age(adapter.update_time, now),
        ]
        if has_deleted:
            row.append(human_moment(adapter.purge_time) if adapter.purge_time else "")
        made.add_row(*row)
    return made


def versions_table(versions: Iterable[Version], now: datetime, *, wide: bool = False) -> FittedTable:
    """The versions of one adapter."""
    gives_way = ("SOURCE", "CREATED", "RANK", "SIZE")
    made = table("VERSION", "TAGS", "RANK", "SIZE", "SOURCE", "CREATED", right=("RANK", "SIZE"), gives_way=gives_way)
    for version in versions:
        made.add_row(
            digest_text(version.digest, wide=wide),
            ", ".join(version.tags) or "-",
            str(version.max_rank),
            human_size(version.weights_size_bytes),
            version.source or "-",
            human_age(version.create_time, now),
        )
    return made


def policies_table(policies: Iterable[AdapterPolicy], now: datetime) -> FittedTable:
    """On how many workers adapters should be."""
    policies = list(policies)
    retention = ("KEEP", "OLDER") if any(policy.keep_versions or policy.untagged_ttl_s for policy in policies) else ()
    columns = ("ADAPTER", "MIN", "MAX", "PINNED", "CHANGED", *retention)
    made = table(*columns, right=("MIN", "MAX", *retention))
    for policy in policies:
        row = [str(policy.keep_versions or "-"), human_period(policy.untagged_ttl_s) if policy.untagged_ttl_s else "-"]
        made.add_row(
            policy.adapter,
            str(policy.min_replicas) if policy.min_replicas else "-",
            str(policy.max_replicas) if policy.max_replicas else "-",
            "yes" if policy.pinned else "no",
            human_age(policy.update_time, now),
            *(row if retention else []),
        )
    return made


def quota_table(quota: TenantQuota) -> FittedTable:
    """Use and limit of each quota of a tenant."""
    made = table("QUOTA", "USED", "LIMIT", right=("USED", "LIMIT"))
    for usage in quota.usages:
        shown = human_size if usage.kind is QuotaKind.BYTES else "{:,}".format
        used, limit = (shown(number) if number is not None else "-" for number in (usage.used, usage.limit))
        made.add_row(usage.kind.replace("_", " "), used, limit)
    return made


def shares_table(shares: Iterable[tuple[str, str, datetime | None]], now: datetime) -> FittedTable:
    """Adapters that are shared, with whom, and since when."""
    made = table("ADAPTER", "WITH", "CHANGED")
    for name, others, changed in shares:
        made.add_row(name, others, human_age(changed, now))
    return made


def base_models_table(models: Iterable[BaseModel]) -> FittedTable:
    """The base models that adapters can be admitted for; whole digests, for `--base`."""
    made = table("NAME", "TYPE", "MODULES", "DIGEST", right=("MODULES",), gives_way=("MODULES", "TYPE", "DIGEST"))
    for model in models:
        named = f"({model.spec.name}, before it was moved)" if model.superseded else model.spec.name
        made.add_row(named, model.spec.model_type, str(len(model.spec.modules)), model.digest)
    return made


def contexts_table(contexts: Contexts) -> FittedTable:
    """`hotslot context ls`."""
    made = table("NAME", "USED", "STORE", "WORKER", "TENANT", gives_way=("TENANT", "WORKER"))
    for name, one in sorted(contexts.named.items()):
        star = "*" if name == contexts.current else ""
        made.add_row(name, star, one.store or "-", one.worker or "-", one.tenant or "-")
    return made


def effective_table(settings: Iterable[Mapping[str, str]]) -> FittedTable:
    """`hotslot context show`: the settings that commands have, and where each is from."""
    made = table("SETTING", "VALUE", "FROM")
    for setting in settings:
        made.add_row(setting["name"], setting["value"], setting["from"])
    return made


def module_lines(version: Version) -> list[str]:
    """The targeted modules by the last part of their path, for example `q_proj: 30 × rank 16, scaling 2`."""
    groups = Counter((m.path.rpartition(".")[2], m.rank, m.scaling, m.has_bias) for m in version.modules)
    return [
        f"{name}: {count} × rank {rank}, scaling {scaling:g}{', with a bias' if has_bias else ''}"
        for (name, rank, scaling, has_bias), count in sorted(groups.items())
    ]


def adapter_rows(adapter: Adapter, now: datetime) -> list[tuple[str, str]]:
    """`hotslot show`: the adapter."""
    rows = [
        ("adapter", adapter.name),
        ("tags", ", ".join(f"{tag.name} → {short_digest(tag.digest)}" for tag in adapter.tags) or "-"),
        ("labels", ", ".join(f"{key}={value}" for key, value in adapter.labels.items()) or "-"),
        ("created", f"{human_age(adapter.create_time, now)} ago"),
        ("changed", f"{human_age(adapter.update_time, now)} ago"),
    ]
    if adapter.delete_time is not None:
        rows.append(("deleted", f"{human_age(adapter.delete_time, now)} ago, gone for good at {adapter.purge_time}"))
    return rows


def version_rows(version: Version, now: datetime) -> list[tuple[str, str]]:
    """`hotslot show`: the version; `modules_table` has its modules one by one."""
    annotations = ", ".join(f"{key}={value}" for key, value in sorted(version.annotations.items()))
    return [
        ("version", version.digest),
        ("base model", f"{version.base_model} ({version.base_model_digest})"),
        ("weights", f"{human_size(version.weights_size_bytes)}, {version.dtype} ({version.weights_digest})"),
        ("modules", "\n".join(module_lines(version)) or "-"),
        ("source", version.source or "-"),
        *([("signed by", version.signer)] if version.signer else []),
        *([("annotations", annotations)] if annotations else []),
        ("created", f"{human_age(version.create_time, now)} ago"),
        ("config", version.config_json or "-"),
    ]


def modules_table(version: Version) -> FittedTable:
    """The targeted modules of a version, one by one."""
    made = table("MODULE", "RANK", "SCALING", right=("RANK", "SCALING"))
    for module in version.modules:
        made.add_row(module.path, str(module.rank), f"{module.scaling:.10g}")
    return made


def details_table(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values, one pair a line."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value)
    return made


def workers_table(
    workers: Iterable[Worker], now: datetime, tokens_per_s: dict[str, float] | None = None
) -> FittedTable:
    """`hotslot workers`, and the upper half of `hotslot top`."""
    columns = ["WORKER", "ENDPOINT", "STATE", "BASE MODEL", "RUNNING", "WAITING", "FREE SLOTS", "KV", "UP"]
    numbers = ["RUNNING", "WAITING", "FREE SLOTS", "KV", "UP"]
    if tokens_per_s is not None:
        columns.append("TOKENS/S")
        numbers.append("TOKENS/S")
    gives_way = ("BASE MODEL", "UP", "KV", "FREE SLOTS", "WAITING", "ENDPOINT", "RUNNING", "TOKENS/S")
    made = table(*columns, right=numbers, gives_way=gives_way)
    for worker in workers:
        load = worker.load
        row = [
            worker.worker_id,
            worker.endpoint,
            worker.state.value,
            worker.base_model,
            f"{load.running_sequences}/{load.max_sequences}",
            str(load.waiting_sequences),
            f"{load.free_slots}/{load.num_slots}",
            f"{load.kv_usage:.0%}",
            human_age(worker.start_time, now),
        ]
        if tokens_per_s is not None:
            rate = tokens_per_s.get(worker.worker_id)
            row.append("-" if rate is None else f"{rate:.1f}")
        made.add_row(*row)
    return made


def placements_table(placements: Iterable[Placement], *, wide: bool = False) -> FittedTable:
    """`hotslot placements`, and the lower half of `hotslot top`."""
    made = table("ADAPTER", "VERSION", "WORKER", "TIER", "PINNED", gives_way=("VERSION", "PINNED"))
    for placement in placements:
        made.add_row(
            placement.adapter or "-",
            digest_text(placement.adapter_digest, wide=wide),
            placement.worker_id,
            placement.tier.value,
            "yes" if placement.pinned else "",
        )
    return made
