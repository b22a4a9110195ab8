"""The store's registry: admits checkpoints and publishes them as versions.

Everything here blocks: call it from a thread.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hotslot.errors import (
    BaseModelMismatchError,
    BaseModelNotFoundError,
    BlobNotFoundError,
    DigestMismatchError,
    FieldViolation,
    HotslotError,
    InvalidAdapterError,
    InvalidRequestError,
    QuotaExceededError,
    SignatureRefusedError,
    StoreUnavailableError,
    Violation,
)
from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.manifest import Manifest
from hotslot.ids import Digest, TenantId
from hotslot.references import Reference
from hotslot.tracing import span_inside
from shared.metrics.numbers import Measured, Spreads, Tally
from store_service.admission.admit import Checkpoint, Verdict, admit, base_model_name_of
from store_service.admission.known_plans import KnownPlans
from store_service.admission.settings import AdmissionLimits
from store_service.announcing import Announcer, Hearers
from store_service.catalog.base_choice import BaseChoice
from store_service.catalog.base_models import BaseModels
from store_service.catalog.blob_claims import ClaimBrokenError
from store_service.catalog.records import (
    NewVersion,
    Resolution,
    VersionRecord,
)
from store_service.content.published import PublishedBlobs
from store_service.content.uploads import UploadFolder
from store_service.content.writer import Writer
from store_service.publication import Publication, check_words
from store_service.signatures.requirement import SignatureRequirement, Signed

MAX_FILES = 64
NUM_CLAIMS = 3
"""Attempts at a blob that is removed while it is published."""


class Registry:
    """Ties admission, blobs and catalog together."""

    def __init__(
        self,
        published: PublishedBlobs,
        base_models: BaseModels,
        uploads: UploadFolder,
        limits: AdmissionLimits,
        signatures: SignatureRequirement,
        hearers: Hearers,
    ) -> None:
        """`hearers` hear of versions while they are published."""
        self._announcer = Announcer(published, hearers)
        self.catalog = published.catalog
        self.base_models = base_models
        self._uploads = uploads
        self._limits = limits
        self._signatures = signatures
        self._plans = KnownPlans()
        self.choice = BaseChoice(base_models, limits)
        self._published = published
        self._blobs = published.blobs
        self._admissions = Tally(
            "hotslot_admissions_total", [(name,) for name in ("published", "present", "refused", "failed")]
        )
        self._stages = Spreads("hotslot_admission_seconds", [("check",), ("publish",)])

    def readings(self) -> Iterator[Measured]:
        """Numbers of admissions."""
        yield from self._admissions.readings()
        yield from self._stages.readings()

    def validate_uploaded(self, tenant: TenantId, files: Mapping[str, Digest], base_model: str) -> Verdict:
        """`validate` for uploaded files; also raises BlobNotFoundError and DigestMismatchError."""
        return self.validate(tenant, self._uploaded(tenant, files), base_model)

    def publish_uploaded(
        self, tenant: TenantId, files: Mapping[str, Digest], publication: Publication
    ) -> tuple[VersionRecord, bool]:
        """`publish` for uploaded files; also raises BlobNotFoundError and DigestMismatchError."""
        return self.publish(tenant, self._uploaded(tenant, files), publication)

    def _uploaded(self, tenant: TenantId, files: Mapping[str, Digest]) -> Checkpoint:
        """The checkpoint made of uploaded files, as they were sent.

        Raises DigestMismatchError or BlobNotFoundError after all files were looked at: everything that the disk has
        changed is gone then, and can be sent again with what was missing.
        """
        if not files or len(files) > MAX_FILES:
            raise InvalidRequestError([FieldViolation("files", f"found {len(files)}, expected 1 to {MAX_FILES}")])
        paths: dict[Digest, Path] = {}
        missing: HotslotError | None = None
        for digest in set(files.values()):
            try:
                paths[digest] = self._uploads.verified_path(tenant, digest)
            except (DigestMismatchError, BlobNotFoundError) as exc:
                missing = exc
        if missing is not None:
            raise missing
        return Checkpoint({name: paths[digest] for name, digest in files.items()})

    def validate(self, tenant: TenantId, checkpoint: Checkpoint, base_model: str) -> Verdict:
        """Admission without publishing; raises BaseModelNotFoundError."""
        signed = Signed(checkpoint)
        unsigned: tuple[Violation, ...] = ()
        try:
            signed = self._signatures.require(tenant, checkpoint)
        except SignatureRefusedError as exc:
            unsigned = exc.violations
        try:
            _, base = self.base_of(checkpoint, base_model)
        except InvalidAdapterError as exc:
            return Verdict((*unsigned, *exc.violations), None)
        verdict = self.choice.explained(self._admit(signed.checkpoint, base), checkpoint, base)
        if unsigned:
            return Verdict((*unsigned, *verdict.violations), None)
        return replace(verdict, manifest=_signed(verdict.manifest, signed)) if verdict.manifest else verdict

    def publish(
        self,
        tenant: TenantId,
        checkpoint: Checkpoint,
        publication: Publication,
        on_admitted: Callable[[], object] = lambda: None,
    ) -> tuple[VersionRecord, bool]:
        """Admit a checkpoint as a version; the flag is false where that version was there already.

        `on_admitted` is called between the checks and publishing.
        Raises InvalidAdapterError (and its kinds), BaseModelNotFoundError, InvalidRequestError (labels),
        EtagMismatchError, QuotaExceededError, and StoreUnavailableError while signature policies cannot be read;
        nothing is visible then.
        """
        outcome = "failed"
        try:
            record, created = self._publish(tenant, checkpoint, publication, on_admitted)
            outcome = "published" if created else "present"
            return record, created
        except InvalidAdapterError:
            outcome = "refused"
            raise
        finally:
            self._admissions.add(outcome)

    def _publish(
        self, tenant: TenantId, checkpoint: Checkpoint, publication: Publication, on_admitted: Callable[[], object]
    ) -> tuple[VersionRecord, bool]:
        began_s = time.monotonic()
        check_words(publication)
        signed = self._signatures.require(tenant, checkpoint)
        checkpoint = signed.checkpoint
        base_name, base = self.base_of(checkpoint, publication.base_model)
        writer = self._blobs.writer(tenant)
        try:
            with span_inside("hotslot.admission.check"):
                verdict, is_staged = self._stage(tenant, checkpoint, base, writer)
                manifest = _signed(self.choice.explained(verdict, checkpoint, base).require(), signed)
                self._check_digest(publication.reference, manifest.digest)
            checked_s = time.monotonic()
            self._stages.add(checked_s - began_s, "check")
            on_admitted()
            shown_json = checkpoint.config(self._limits).shown_json
            version = NewVersion(manifest, base_name, publication.source, shown_json, publication.annotations)
            staged = writer if is_staged else None
            announced = self._announcer.announced(tenant, publication, manifest, staged)
            with span_inside("hotslot.admission.publish"), announced:
                record, created = self._make_visible(tenant, version, publication, staged)
        finally:
            writer.close()
        self._stages.add(time.monotonic() - checked_s, "publish")
        return replace(record, warnings=verdict.warnings), created

    def _make_visible(
        self, tenant: TenantId, version: NewVersion, publication: Publication, staged: Writer | None
    ) -> tuple[VersionRecord, bool]:
        """Publish the blob, which without `staged` is on the disk already, and then the version that refers to it."""
        manifest = version.manifest
        key = tenant, manifest.weights_digest
        with self._published.publishing(key):
            for _ in range(NUM_CLAIMS):
                with suppress(ClaimBrokenError), self._published.claimed(key) as claim:
                    if staged is not None:
                        staged.publish(manifest.weights_digest, manifest.weights_size_bytes)
                        staged = None
                    else:
                        self._blobs.require_object(key)
                    return self.catalog.create_version(
                        tenant,
                        publication.reference.name,
                        version,
                        tag=publication.reference.tag,
                        new_labels=dict(publication.labels),
                        tag_etag=publication.tag_etag,
                        more_tags=publication.tags,
                        keep=publication.keep,
                        requires_base=True,
                        claim=claim,
                    )
        raise StoreUnavailableError(f"blob {key[1]} is removed as fast as it is stored; try again", retry_after_s=1.0)

    def _stage(self, tenant: TenantId, checkpoint: Checkpoint, base: BaseSpec, writer: Writer) -> tuple[Verdict, bool]:
        """Admit into a writer; the flag is false where there was no room, and no need of it: the blob is there."""
        try:
            return self._admit(checkpoint, base, writer), True
        except QuotaExceededError:
            verdict = self._admit(checkpoint, base)
            if not self._blobs.contains(tenant, verdict.require().weights_digest):
                raise
            return verdict, False

    def _admit(self, checkpoint: Checkpoint, base: BaseSpec, writer: Writer | None = None) -> Verdict:
        if writer is None:
            return admit(checkpoint, base, self._limits, plans=self._plans)
        return admit(checkpoint, base, self._limits, writer.append, writer.reserve, writer, plans=self._plans)

    def resolve(self, tenant: TenantId, reference: Reference, base_model_digest: str) -> Resolution:
        """Resolve a reference to the version that it stands for now.

        Raises as `Catalog.resolve`, and BaseModelMismatchError when it is not for the base model given.
        """
        resolution = self.catalog.resolve(tenant, reference)
        record = resolution.version
        self._blobs.keep(tenant, record.manifest.weights_digest)
        found = record.manifest.base_model_digest
        if base_model_digest and found != base_model_digest:
            problem = f"it was admitted for {record.base_model}"
            raise BaseModelMismatchError(
                [Violation.of("BASE_MODEL_MISMATCH", str(reference), found, base_model_digest, problem)]
            )
        return resolution

    def base_of(self, checkpoint: Checkpoint, wanted: str) -> tuple[str, BaseSpec]:
        """The base model that a checkpoint is judged by.

        Raises BaseModelNotFoundError, InvalidAdapterError where the config would have to name it and cannot be used,
        and InvalidRequestError where neither names it.
        """
        name = wanted or base_model_name_of(checkpoint, self._limits)
        if not name:
            problem = "neither the call nor adapter_config.json names the base model; give its name or digest"
            raise InvalidRequestError([FieldViolation("base_model", problem)])
        try:
            spec = self.base_models.get(name).spec
        except BaseModelNotFoundError as exc:
            raise self.choice.not_found(exc, checkpoint) from exc
        return spec.name, spec

    def _check_digest(self, reference: Reference, found: Digest) -> None:
        if reference.digest is not None and reference.digest != found:
            problem = f"the content has digest {found}, the reference says {reference.digest}"
            raise InvalidRequestError([FieldViolation("reference", problem)])


def _signed(manifest: Manifest, signed: Signed) -> Manifest:
    return replace(manifest, signer=signed.signer) if signed.signer else manifest
