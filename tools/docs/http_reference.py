"""Reference of the gateway's HTTP: routes and bodies from the OpenAPI document."""

from collections.abc import Iterator, Mapping
from typing import Any

from gateway_service.openapi import ROUTES, document, type_of
from tools.docs.markdown import code, prose, table


def page() -> str:
    """The page."""
    described = document("0")
    schemas = described["components"]["schemas"]
    parts = [_HEAD]
    shown: dict[str, None] = {}
    for method, path, summary, body in ROUTES:
        parts.append(f"## `{method.upper()} {path}`\n\n{prose(summary)}\n")
        if body is not None:
            parts.append(_fields(schemas[body.__name__]))
            shown[body.__name__] = None
    parts.append("## Parts of bodies\n")
    for name in sorted(schemas.keys() - shown.keys() - {"Error"}):
        parts.append(f"### {name}\n\n{prose(schemas[name].get('description', ''))}\n")
        parts.append(_fields(schemas[name]))
    return "\n".join(parts)


def _fields(schema: Mapping[str, Any]) -> str:
    return table(("field", "type", "meaning"), fields(schema))


def fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, type and meaning of each field of a body."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        is_required = ", must be given" if name in required else ""
        yield code(name), prose(type_of(field)) + is_required, prose(field.get("description", ""))


_HEAD = """# HTTP

Routes of the gateway, from its OpenAPI document, which it serves at `/openapi.json` and, as a page, at `/docs`.
[OpenAI's HTTP](../gateway.md) has examples, statuses, and the parameters that are refused or ignored.
"""
