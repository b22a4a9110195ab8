"""Files that lie beside weights, as far as they decide what a model is sent and where its answers end.

Tokenizers, chat templates and generation configs stand in the folders of base models and of adapters alike. Both are
read here, so that one can be compared with the other. A file that cannot be read says nothing but that.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotslot.formats.strict_json import StrictJsonError, parse_object

GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER = "tokenizer.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATE_JSON = "chat_template.json"
COMPANION_FILES = (
    GENERATION_CONFIG, TOKENIZER_CONFIG, TOKENIZER, SPECIAL_TOKENS, ADDED_TOKENS, CHAT_TEMPLATE, CHAT_TEMPLATE_JSON,
)  # fmt: skip
SUMMARY_FILE = "hotslot_companions.json"
"""Summary of an adapter's companions, which is uploaded in their place: a tokenizer alone may have 30 MiB."""
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_SUMMARY_BYTES = 1024 * 1024
MAX_ADDED_TOKENS = 8_192
MAX_END_TOKENS = 64
MAX_PROBLEM_CHARS = 200


@dataclass(frozen=True, slots=True)
class Companions:
    """Facts from the files beside a model's or an adapter's weights."""

    files: tuple[str, ...] = ()
    """The files that were there and could be read."""
    end_token_ids: tuple[int, ...] = ()
    """As the generation config has them."""
    end_token: str = ""
    """As the tokenizer has it."""
    chat_template_digest: str = ""
    added_tokens: Mapping[str, int] = field(default_factory=dict)
    """Ids of the tokens beside the tokenizer's own vocabulary, special ones among them, by their text."""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """Problems of files that are there and cannot be used, in a clause each, by the file."""

    def to_json(self) -> str:
        """As text that `companions_from_json` reads; the same for equal ones."""
        document = {
            "files": list(self.files),
            "end_token_ids": list(self.end_token_ids),
            "end_token": self.end_token,
            "chat_template_digest": self.chat_template_digest,
            "added_tokens": dict(self.added_tokens),
            **({"damaged": dict(self.damaged)} if self.damaged else {}),
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"))


def companions_from_json(data: bytes) -> Companions:
    """Raises StrictJsonError for what `Companions.to_json` does not write."""
    if len(data) > MAX_SUMMARY_BYTES:
        raise StrictJsonError(f"{len(data)} bytes, at most {MAX_SUMMARY_BYTES} are taken")
    document = parse_object(data)
    files = document.get("files", [])
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise StrictJsonError("files is no list of names")
    return Companions(
        files=tuple(name for name in COMPANION_FILES if name in files),
        end_token_ids=_ids(document.get("end_token_ids")),
        end_token=_text(document.get("end_token")),
        chat_template_digest=_text(document.get("chat_template_digest")),
        added_tokens=_tokens(document.get("added_tokens")),
        damaged={
            name: problem[:MAX_PROBLEM_CHARS]
            for name in COMPANION_FILES
            if (problem := _text(_object(document.get("damaged")).get(name)))
        },
    )


def read_companions(folder: Path) -> Companions:
    """The companions in a folder; files that are damaged or absurdly large are named as such."""
    return companions_of({name: folder / name for name in COMPANION_FILES})


def companions_of(files: Mapping[str, Path]) -> Companions:
    """The companions among files by their names."""
    found: dict[str, dict[str, Any]] = {}
    damaged: dict[str, str] = {}
    for name, path in files.items():
        try:
            if (document := _read(path)) is not None:
                found[name] = document
        except (OSError, ValueError, RecursionError) as exc:
            damaged[name] = _problem(exc)
    damaged |= {name: problem for name, problem in _misfits(found) if name not in damaged}
    generation, config = found.get(GENERATION_CONFIG, {}), found.get(TOKENIZER_CONFIG, {})
    special = found.get(SPECIAL_TOKENS, {})
    added: dict[str, int] = {}
    for token_id, token in _object(config.get("added_tokens_decoder")).items():
        if token_id.isdecimal():
            added |= _tokens({_token_text(token): int(token_id)})
    added |= _tokens(found.get(ADDED_TOKENS))
    tokens = found.get(TOKENIZER, {}).get("added_tokens")
    for token in tokens if isinstance(tokens, list) else []:
        if isinstance(token, dict):
            added |= _tokens({_token_text(token): token.get("id")})
    templates = (
        found.get(CHAT_TEMPLATE, {}).get("text"),
        config.get("chat_template"),
        found.get(CHAT_TEMPLATE_JSON, {}).get("chat_template"),
    )
    template = next((text for value in templates if (text := _template_text(value))), "")
    return Companions(
        files=tuple(name for name in COMPANION_FILES if name in found),
        end_token_ids=_ids(generation.get("eos_token_id")),
        end_token=_token_text(config.get("eos_token")) or _token_text(special.get("eos_token")),
        chat_template_digest=_digest_of_template(template),
        added_tokens=dict(sorted(added.items())[:MAX_ADDED_TOKENS]),
        damaged=damaged,
    )


def _read(path: Path) -> dict[str, Any] | None:
    """One file's object, None where there is no such file; raises OSError, ValueError or RecursionError."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
    if path.name == CHAT_TEMPLATE:
        return {"text": data.decode()}
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError(f"it holds a JSON {type(document).__name__}, expected an object")
    return document


def _problem(error: Exception) -> str:
    """Clause for people, bounded."""
    match error:
        case UnicodeDecodeError():
            problem = f"byte {error.start} is not UTF-8"
        case json.JSONDecodeError():
            problem = f"it is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        case RecursionError():
            problem = "it is nested too deep"
        case OSError():
            problem = error.strerror or type(error).__name__
        case _:
            problem = str(error)
    return problem[:MAX_PROBLEM_CHARS]


def _misfits(found: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Values that are read from a file and have no form that is known there."""
    for name, field_name, has_form, expected in (
        (GENERATION_CONFIG, "eos_token_id", _are_ids, "a token id or a list of some"),
        (TOKENIZER_CONFIG, "eos_token", _is_token, "a token's text"),
        (
            TOKENIZER_CONFIG,
            "chat_template",
            lambda value: isinstance(value, str | list),
            "a template or a list of some",
        ),
    ):
        value = found.get(name, {}).get(field_name)
        if value is not None and not has_form(value):
            yield name, f"its {field_name} is {repr(value)[: MAX_PROBLEM_CHARS // 4]}, expected {expected}"


def _are_ids(value: Any) -> bool:
    return all(type(i) is int and 0 <= i < 2**31 for i in (value if isinstance(value, list) else [value]))


def _is_token(value: Any) -> bool:
    return isinstance(value.get("content") if isinstance(value, dict) else value, str)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _token_text(value: Any) -> str:
    """A token is written as its text, or as an object with its text."""
    return _text(value.get("content")) if isinstance(value, dict) else _text(value)


def _template_text(value: Any) -> str:
    """A template is one text, or a list of named ones, of which "default" is used."""
    if isinstance(value, list):
        named = {_text(item.get("name")): item.get("template") for item in value if isinstance(item, dict)}
        return _text(named.get("default"))
    return _text(value)


def _digest_of_template(text: str) -> str:
    """Line ends and the last newline are editors' affair."""
    lines = text.replace("\r\n", "\n").rstrip("\n")
    return "sha256:" + hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest() if lines else ""


def _ids(value: Any) -> tuple[int, ...]:
    found = value if isinstance(value, list) else [value]
    return tuple(sorted({i for i in found if type(i) is int and 0 <= i < 2**31}))[:MAX_END_TOKENS]


def _tokens(value: Any) -> dict[str, int]:
    return {text: i for text, i in _object(value).items() if text and type(i) is int and 0 <= i < 2**31}
