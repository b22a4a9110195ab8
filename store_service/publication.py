"""Words of a caller about a checkpoint that is to be published, and their bounds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.ids import TagName
from hotslot.references import Reference
from store_service.catalog.records import MAX_ANNOTATIONS, MAX_LABELS, Annotations

MAX_TAGS = 32
"""Most further tags of one publication."""
MAX_KEEP_VERSIONS = 100_000
MAX_LABEL_KEY_CHARS = 128
MAX_LABEL_VALUE_CHARS = 512


@dataclass(frozen=True)
class Publication:
    """Name, base model, source and labels under which a checkpoint is published."""

    reference: Reference
    base_model: str
    """Name or digest; empty means what the config says."""
    source: str
    labels: Mapping[str, str]
    tag_etag: str = ""
    annotations: Annotations = ()
    tags: tuple[TagName, ...] = ()
    """Further tags to point at the version."""
    keep: int | None = None
    """Number of versions that the adapter's policy keeps from now on; None leaves it as it is."""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two that ask for the same."""
        labels = tuple(sorted(self.labels.items()))
        further = self.annotations, self.tags, self.keep
        return str(self.reference), self.base_model, self.source, labels, self.tag_etag, *further

    def from_origin(self, origin: str) -> "Publication":
        """The same, now that it is known where exactly the checkpoint came from."""
        return replace(self, source=origin)


def check_words(publication: Publication) -> None:
    """Raises InvalidRequestError with everything that is wrong with labels, annotations, tags and retention."""
    problems = [
        *_word_problems("labels", publication.labels, MAX_LABELS),
        *_word_problems("annotations", dict(publication.annotations), MAX_ANNOTATIONS),
    ]
    if len(publication.tags) > MAX_TAGS:
        problems.append(FieldViolation("tags", f"found {len(publication.tags)}, at most {MAX_TAGS}"))
    if publication.keep is not None and not 0 <= publication.keep <= MAX_KEEP_VERSIONS:
        problems.append(FieldViolation("keep_versions", f"found {publication.keep}, expected 0 to {MAX_KEEP_VERSIONS}"))
    if problems:
        raise InvalidRequestError(problems)


def _word_problems(field: str, words: Mapping[str, str], most: int) -> Iterator[FieldViolation]:
    expected = f"a key has 1 to {MAX_LABEL_KEY_CHARS} characters, a value at most {MAX_LABEL_VALUE_CHARS}"
    for key, value in words.items():
        if not 0 < len(key) <= MAX_LABEL_KEY_CHARS or len(value) > MAX_LABEL_VALUE_CHARS:
            yield FieldViolation(field, f"{key[:40]!r}: {expected}")
    if len(words) > most:
        yield FieldViolation(field, f"found {len(words)}, at most {most}")
