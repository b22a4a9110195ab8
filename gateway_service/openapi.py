"""The OpenAPI document of the gateway, from its pydantic models, and a page that shows it without any other asset."""

import html
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway_service.parameters import CHAT, COMPLETIONS, Parameter
from gateway_service.request_bodies import (
    ChatBody,
    CompletionBody,
    LoadAdapterBody,
    UnloadAdapterBody,
)
from gateway_service.token_bodies import DetokenizeBody, TokenizeBody

ROUTES: tuple[tuple[str, str, str, type[BaseModel] | None], ...] = (
    ("post", "/v1/chat/completions", "Answers a chat; with stream, as server-sent events.", ChatBody),
    ("post", "/v1/completions", "Goes on with texts or tokens; with stream, as server-sent events.", CompletionBody),
    ("get", "/v1/models", "Lists base models and the adapters for them.", None),
    ("get", "/v1/models/{model}", "Describes one model: a base model's name, or a reference.", None),
    ("post", "/v1/load_lora_adapter", "Brings an adapter to a worker, from the hub where it is new.", LoadAdapterBody),
    ("post", "/v1/unload_lora_adapter", "Removes an adapter from the workers that hold it.", UnloadAdapterBody),
    ("post", "/tokenize", "Tokens of a text or a chat, as a prompt has them.", TokenizeBody),
    ("post", "/detokenize", "Text of tokens.", DetokenizeBody),
    ("get", "/health", "200 while requests can be served.", None),
    ("get", "/health/live", "200 while the process answers.", None),
    ("get", "/version", "The version that serves.", None),
    ("get", "/ui", "A page with workers and adapters as they are now, where HOTSLOT_GATEWAY_UI is true.", None),
    ("get", "/ui/files/{name}", "A file of the page.", None),
    ("get", "/ui/state", "Workers with what keeps them from serving, and the adapters that they hold.", None),
    ("get", "/metrics", "Metrics for Prometheus, where HOTSLOT_GATEWAY_METRICS is true.", None),
)

_PARAMETERS: tuple[tuple[type[BaseModel], tuple[Parameter, ...]], ...] = (
    (ChatBody, CHAT),
    (CompletionBody, COMPLETIONS),
)
"""Notes on the fields of bodies."""

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def document(version: str) -> dict[str, Any]:
    """The document."""
    bodies = [body for _, _, _, body in ROUTES if body is not None]
    wanted: list[tuple[type[BaseModel], Literal["validation"]]] = [(body, "validation") for body in bodies]
    _, schemas = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    for kind, parameters in _PARAMETERS:
        fields = schemas["$defs"][kind.__name__]["properties"]
        for parameter in parameters:
            if parameter.name in fields:
                fields[parameter.name].setdefault("description", parameter.note)
    paths: dict[str, Any] = {}
    for method, path, summary, body in ROUTES:
        paths.setdefault(path, {})[method] = _operation(path, summary, body)
    return {
        "openapi": "3.1.0",
        "info": {"title": "hotslot", "version": version, "description": "OpenAI's HTTP over many LoRA adapters."},
        "paths": paths,
        "components": {"schemas": {**schemas["$defs"], "Error": _ERROR}},
    }


def _operation(path: str, summary: str, body: type[BaseModel] | None) -> dict[str, Any]:
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "Done."},
            "default": {"description": "Refused or failed.", "content": refused},
        },
    }
    named = re.findall(r"{(\w+)}", path)
    if named:
        schema = {"type": "string"}
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema} for name in named]
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def page(version: str) -> str:
    """The document for people."""
    described = document(version)
    schemas = described["components"]["schemas"]
    parts = []
    for method, path, summary, body in ROUTES:
        fields = _fields(schemas[body.__name__]) if body is not None else ""
        parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(summary)}</p>{fields}")
    return _PAGE.format(version=html.escape(version), body="\n".join(parts))


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code>{' *' if name in required else ''}</td>"
        f"<td><code>{html.escape(type_of(field))}</code></td><td>{html.escape(field.get('description', ''))}</td></tr>"
        for name, field in schema["properties"].items()
    )
    return f"<table>{rows}</table>"


def type_of(field: Mapping[str, Any]) -> str:
    """Type of a field in words; null, which every field that may be left out can be, is none."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    named = [kind.get("type") or kind.get("$ref", "").rpartition("/")[2] or json.dumps(kind) for kind in kinds]
    return " | ".join(str(name) for name in named)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hotslot {version}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; }} td {{ border-top: 1px solid #8884; padding: .2rem .8rem .2rem 0; }}
</style></head><body>
<h1>hotslot {version}</h1>
<p>OpenAI's HTTP over many LoRA adapters. The same as a document: <a href="/openapi.json">/openapi.json</a>.
Fields with * must be given.</p>
{body}
</body></html>
"""
