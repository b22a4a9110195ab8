"""What a catalog must show, as a model: states of one adapter's name, and what each call makes of them."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Content:
    """One adapter's versions by digest, and its tags."""

    versions: frozenset[str] = frozenset()
    tags: frozenset[tuple[str, str]] = frozenset()

    def without_tag(self, tag: str) -> "Content":
        return replace(self, tags=frozenset(entry for entry in self.tags if entry[0] != tag))

    def with_tag(self, tag: str, digest: str) -> "Content":
        return replace(self, tags=self.without_tag(tag).tags | {(tag, digest)})

    def with_version(self, tag: str, digest: str) -> "Content":
        return replace(self, versions=self.versions | {digest}).with_tag(tag, digest)

    def without_version(self, digest: str) -> "Content":
        tags = frozenset(entry for entry in self.tags if entry[1] != digest)
        return Content(self.versions - {digest}, tags)


@dataclass(frozen=True)
class NameState:
    """The adapter that has a name, and those that had it and can come back, oldest deletion first."""

    live: Content | None = None
    deleted: tuple[Content, ...] = ()

    def published(self, tag: str, digest: str) -> "NameState":
        return self.changed((self.live or Content()).with_version(tag, digest))

    def changed(self, live: Content) -> "NameState":
        return replace(self, live=live)

    def without_live(self) -> "NameState":
        assert self.live is not None
        return NameState(None, (*self.deleted, self.live))

    def undeleted(self) -> "NameState":
        return NameState(self.deleted[-1], self.deleted[:-1])

    def all_versions(self) -> frozenset[str]:
        return frozenset().union(*(content.versions for content in (self.live or Content(), *self.deleted)))

    def shown(self) -> "Shown":
        """What a listing tells of it."""
        deleted = sorted((len(content.versions), tuple(sorted(content.tags))) for content in self.deleted)
        return Shown(self.live, tuple(deleted))


@dataclass(frozen=True)
class Shown:
    """What can be seen of a name from outside: of deleted adapters only tags and the number of versions."""

    live: Content | None
    deleted: tuple[tuple[int, tuple[tuple[str, str], ...]], ...]
