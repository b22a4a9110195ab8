"""References to blobs: asked for by the index of their digests, in both databases."""

from sqlalchemy import Engine, event

from store_service.catalog.catalog import Catalog
from tests.contract.test_catalog import ACME, OTHER, create


def test_a_look_at_some_blobs_is_by_their_index_however_many_versions_there_are(engine: Engine) -> None:
    catalog = Catalog(engine)
    records = [create(catalog, number)[0] for number in range(1, 4)]
    keys = [(ACME, record.manifest.weights_digest) for record in records]
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        asked.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    assert catalog.references.among([*keys[:2], (OTHER, keys[2][1])]) == set(keys[:2])
    assert {use.weights_digest for use in catalog.references.uses_among(keys)} == {digest for _, digest in keys}
    event.remove(engine, "before_cursor_execute", note)
    assert sum(each.startswith("SELECT versions") for each in asked) == 2
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            for statement in [each for each in asked if each.startswith("SELECT versions")]:
                values = ("acme",) * statement.count("?")
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
                assert any("ix_versions_weights_digest" in row.detail for row in plan), plan
