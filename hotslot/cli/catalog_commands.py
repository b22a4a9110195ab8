"""Commands that bring adapters into the store and name them, and out of it: push, pull, import, validate, tag, cp."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from hotslot.cli import options
from hotslot.cli.base_question import can_ask, choose_base
from hotslot.cli.digests import check_reference, full_base, full_reference
from hotslot.cli.failures import EXIT_REFUSED, violation_lines
from hotslot.cli.options import BaseOption, JsonOption, ReferenceArgument, StoreOption, TenantOption, open_client
from hotslot.cli.output import print_document, say
from hotslot.cli.progress import transfer_bars
from hotslot.cli.rendering import human_size, short_digest
from hotslot.clients.blocking import BlockingHotslotClient
from hotslot.contract.admission_warning import AdmissionWarning
from hotslot.contract.catalog import Version
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.references import parse_reference, parse_tag
from hotslot.sources import HubName, StoreFolder, parse_source

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that PEFT's save_pretrained wrote.")]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="Label the adapter; may be repeated. An empty VALUE removes it."),
]


def push(
    folder: FolderArgument,
    reference: ReferenceArgument,
    base: BaseOption = "",
    label: LabelOption = None,
    annotate: Annotated[
        list[str] | None,
        typer.Option("--annotate", metavar="KEY=VALUE", help="Annotate the version; may be repeated."),
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="Point this tag at the version too; may be repeated."),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option("--keep", min=0, metavar="N", help="Keep the newest N versions from now on, beside tagged ones."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Take the only base model that fits, without a question.")
    ] = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Upload a PEFT folder, have it checked, and tag it.

    Base models that its tensors fit are offered before it is sent, if its config names none that is registered.

    JSON: {version, created, warnings, revision, uploaded_bytes, total_bytes}.
    """
    labels, annotations = parse_labels(label or []), parse_labels(annotate or [], "--annotate")
    with open_client(store=store, tenant=tenant) as client:
        chosen = full_base(client, base) or choose_base(
            client, folder, reference, yes=yes, may_ask=can_ask(as_json=as_json)
        )
        with transfer_bars() as on_progress:
            result = client.store.push(
                folder,
                reference,
                base_model=chosen,
                labels=labels,
                annotations=annotations,
                tags=tags or (),
                keep=keep,
                on_progress=on_progress,
            )
    if as_json:
        print_document(result)
        return
    version = result.version
    known = "" if result.created else ", which was there already"
    print(f"{_named(reference)} is version {version.digest}{known}")
    say(_summary(version) + f", sent {human_size(result.uploaded_bytes)} of {human_size(result.total_bytes)}")
    _say_warnings(result.warnings)


def pull(
    reference: ReferenceArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet, or is empty.")],
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Write a version as a PEFT folder, which PeftModel.from_pretrained loads to the same deltas.

    JSON: {version, folder}.
    """
    check_reference(reference)
    with open_client(store=store, tenant=tenant) as client:
        version = client.store.pull(full_reference(client, reference), folder)
    if as_json:
        print_document({"version": version, "folder": str(folder)})
    else:
        print(f"{folder} is version {version.digest}")
        say(_summary(version))


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="hf:ORG/NAME\\[@REVISION]\\[#SUBFOLDER] or the repository's address; s3://, gs:// or "
            "az://BUCKET/FOLDER; https://HOST/PATH.tar\\[.gz] with its digest; or dir:/PATH of a folder on the "
            "store's machine.",
        ),
    ],
    reference: ReferenceArgument,
    base: BaseOption = "",
    subfolder: Annotated[str, typer.Option(help="Folder inside the repository.")] = "",
    digest: Annotated[
        str, typer.Option(metavar="sha256:HEX", help="Digest of an archive; or as #sha256:HEX at the end of its URL.")
    ] = "",
    label: LabelOption = None,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Have the store fetch an adapter from a hub, a bucket, a web server or a folder, check it, and tag it.

    Buckets and web servers are those that the store's operator allowed the tenant; the store has the credentials.

    JSON: {version, revision}.
    """
    where = parse_source(source, digest)
    labels = parse_labels(label or [])
    if not isinstance(where, HubName) and subfolder:
        raise InvalidRequestError([FieldViolation("--subfolder", "is for repositories; add it to the path")])
    if isinstance(where, HubName) and where.subfolder and subfolder.strip("/") not in ("", where.subfolder):
        problem = f"found {subfolder!r}, and SOURCE names the folder {where.subfolder!r}"
        raise InvalidRequestError([FieldViolation("--subfolder", problem)])
    with open_client(store=store, tenant=tenant) as client, transfer_bars() as on_progress:
        base = full_base(client, base)
        if isinstance(where, StoreFolder):
            version = client.store.import_directory(
                where.path, reference, base_model=base, labels=labels, on_progress=on_progress
            )
        elif not isinstance(where, HubName):
            version = client.store.import_url(
                str(where), reference, base_model=base, labels=labels, on_progress=on_progress
            )
        else:
            version = client.store.import_hub(
                where.repo_id,
                reference,
                revision=where.revision,
                subfolder=where.subfolder or subfolder,
                base_model=base,
                labels=labels,
                on_progress=on_progress,
            )
    if as_json:
        print_document({"version": version, "revision": client.revision})
        return
    print(f"{_named(reference)} is version {version.digest}")
    say(_summary(version) + f", from {version.source}")
    _say_warnings(version.warnings)


def validate(
    folder: FolderArgument,
    base: BaseOption = "",
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Check a PEFT folder without publishing it; exit code 4 when it would be refused.

    JSON: {valid, violations, digest, base_model_digest, max_rank, dtype, num_modules, weights_size_bytes, warnings}.
    """
    with open_client(store=store, tenant=tenant) as client, transfer_bars() as on_progress:
        report = client.store.validate(folder, base_model=full_base(client, base), on_progress=on_progress)
    if as_json:
        print_document(report)
    elif report.valid:
        print(
            f"valid: rank {report.max_rank} on {report.num_modules} modules, {report.dtype}, "
            f"{human_size(report.weights_size_bytes)}; it would be version {report.digest}"
        )
    else:
        say(f"hotslot: {folder} would be refused:")
        for line in violation_lines(report.violations):
            say(f"  {line}")
    if not as_json:
        _say_warnings(report.warnings)
    if not report.valid:
        raise typer.Exit(EXIT_REFUSED)


def tag(
    reference: ReferenceArgument,
    name: Annotated[str, typer.Argument(metavar="TAG", help="The tag to point at that version.")],
    etag: Annotated[str, typer.Option(help="Etag that the tag must still have.")] = "",
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Point a tag at the version that a reference stands for now.

    JSON: {adapter, tag, previous_digest, revision}.
    """
    check_reference(reference)
    parse_tag(name)
    with open_client(store=store, tenant=tenant) as client:
        _move_tag(client, full_reference(client, reference), name, etag, as_json=as_json)


def cp(
    reference: ReferenceArgument,
    new: Annotated[str, typer.Argument(metavar="NEWREF", help="Another tag of the same name, as name:tag.")],
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Give the version that a reference stands for a further tag; nothing is downloaded.

    JSON: {adapter, tag, previous_digest, revision}.
    """
    check_reference(reference)
    target = parse_reference(new)
    with open_client(store=store, tenant=tenant) as client:
        full = full_reference(client, reference)
        if target.name != parse_reference(full).name:
            ways = f"`hotslot pull {reference} DIR` and `hotslot push DIR {new}` make one"
            problem = f"found {new!r}: a store makes no copy under another name by itself; {ways}"
            raise InvalidRequestError([FieldViolation("NEWREF", problem)])
        if target.tag is None or target.digest is not None:
            raise InvalidRequestError([FieldViolation("NEWREF", f"found {new!r}, expected name:tag")])
        _move_tag(client, full, target.tag, "", as_json=as_json)


def _move_tag(client: BlockingHotslotClient, reference: str, name: str, etag: str, *, as_json: bool) -> None:
    parsed = parse_reference(reference)
    version = client.store.resolve(str(parsed)).version
    before = client.store.get(parsed.name).tag(name)
    moved = client.store.set_tag(parsed.name, name, version.digest, etag=etag)
    if as_json:
        previous = before.digest if before else None
        told = {"adapter": parsed.name, "tag": moved, "previous_digest": previous, "revision": client.revision}
        print_document(told)
        return
    was = f" (was {short_digest(before.digest)})" if before and before.digest != moved.digest else ""
    print(f"{parsed.name}:{moved.name} is version {moved.digest}{was}")


def parse_labels(texts: list[str], option: str = "--label") -> dict[str, str]:
    """`KEY=VALUE` each; raises InvalidRequestError with every one at fault."""
    wrong = [FieldViolation(option, f"found {t!r}, expected KEY=VALUE") for t in texts if t.find("=") < 1]
    if wrong:
        raise InvalidRequestError(wrong)
    return {key: value for key, _, value in (text.partition("=") for text in texts)}


def _say_warnings(warnings: Iterable[AdmissionWarning]) -> None:
    for warning in warnings:
        say(f"warning: {warning.message}")


def _named(reference: str) -> str:
    return str(parse_reference(reference))


def _summary(version: Version) -> str:
    return (
        f"rank {version.max_rank}, {version.dtype}, {human_size(version.weights_size_bytes)}, for {version.base_model}"
    )
