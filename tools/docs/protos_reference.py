"""Reference of the gRPC services: each RPC, message, field and value with the comment of its proto."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc import StatusCode

from hotslot.rpc.status import STATUS_TABLE
from tools.docs import errors_reference
from tools.docs.markdown import code, prose, table, target

PROTOS = Path(__file__).resolve().parents[2] / "protos"
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
"""Numbers of a file's parts in the paths of its comments; inside of a message and an enum they are these."""
_FIELDS, _NESTED, _NESTED_ENUMS, _VALUES, _METHODS = 2, 3, 4, 2, 2


_CODES = {code.name for code in StatusCode}
_ERRORS = {row.reason: f"errors.md#{errors_reference.anchor(row)}" for row in STATUS_TABLE if row.reason not in _CODES}
"""Links to what is said of each error; a word that is a status too stands for the status."""


@dataclass(frozen=True, slots=True)
class Described:
    """Something in a proto that has a name and a comment."""

    kind: str
    """service, rpc, message, field, enum or value."""
    name: str
    """Name with its package."""
    comment: str
    type: str = ""
    """A field's type in words, an RPC's request and answer."""
    number: int = 0


@cache
def files() -> tuple[FileDescriptorProto, ...]:
    """Descriptors of the protos with their comments, in the order of their paths."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "protos.binpb"
        names = [str(path) for path in sorted(PROTOS.rglob("*.proto"))]
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", "--include_source_info"]
        subprocess.run([*command, f"--descriptor_set_out={output}", *names], check=True)
        return tuple(FileDescriptorSet.FromString(output.read_bytes()).file)


def described() -> Iterator[Described]:
    """Everything that a caller may name, in the order of the files."""
    for file in files():
        yield from _of_file(file)


def _of_file(file: FileDescriptorProto) -> Iterator[Described]:
    comments = {
        tuple(place.path): _plain(place.leading_comments + place.trailing_comments)
        for place in file.source_code_info.location
    }

    def comment(*path: int) -> str:
        return comments.get(path, "")

    for index, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield Described("service", name, comment(_SERVICES, index))
        for at, method in enumerate(service.method):
            ends = [
                f"{'stream ' * streams}{_link(kind)}"
                for kind, streams in (
                    (method.input_type, method.client_streaming),
                    (method.output_type, method.server_streaming),
                )
            ]
            note = comment(_SERVICES, index, _METHODS, at)
            yield Described("rpc", f"{name}.{method.name}", note, f"{ends[0]} → {ends[1]}")
    for index, message in enumerate(file.message_type):
        yield from _of_message(message, file.package, (_MESSAGES, index), comments)
    for index, enum in enumerate(file.enum_type):
        yield from _of_enum(enum, file.package, (_ENUMS, index), comments)


def _of_message(
    message: DescriptorProto, scope: str, path: tuple[int, ...], comments: dict[tuple[int, ...], str]
) -> Iterator[Described]:
    if message.options.map_entry:
        return
    name = f"{scope}.{message.name}"
    yield Described("message", name, comments.get(path, ""))
    for index, field in enumerate(message.field):
        kind = _type(field, message)
        note = comments.get((*path, _FIELDS, index), "")
        yield Described("field", f"{name}.{field.name}", note, kind, field.number)
    for index, inner in enumerate(message.nested_type):
        yield from _of_message(inner, name, (*path, _NESTED, index), comments)
    for index, enum in enumerate(message.enum_type):
        yield from _of_enum(enum, name, (*path, _NESTED_ENUMS, index), comments)


def _of_enum(
    enum: EnumDescriptorProto, scope: str, path: tuple[int, ...], comments: dict[tuple[int, ...], str]
) -> Iterator[Described]:
    name = f"{scope}.{enum.name}"
    yield Described("enum", name, comments.get(path, ""))
    for index, value in enumerate(enum.value):
        yield Described("value", f"{name}.{value.name}", comments.get((*path, _VALUES, index), ""), number=value.number)


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    entry = next(
        (kind for kind in message.nested_type if field.type_name.endswith(f".{message.name}.{kind.name}")), None
    )
    if entry is not None and entry.options.map_entry:
        return f"map of {_scalar(entry.field[0])} to {_scalar(entry.field[1])}"
    words = _scalar(field)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {words}"
    if field.proto3_optional:
        return f"optional {words}"
    if field.HasField("oneof_index"):
        return f"{words}, one of {code(message.oneof_decl[field.oneof_index].name)}"
    return words


def _scalar(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _link(field.type_name)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _link(type_name: str) -> str:
    name = type_name.lstrip(".")
    return f"[{name.rpartition('.')[2]}](#{_anchor(name)})" if name.startswith("hotslot.") else code(name)


def _anchor(name: str) -> str:
    return "proto-" + re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower())


def _plain(comment: str) -> str:
    return "\n".join(line.removeprefix(" ").rstrip() for line in comment.strip("\n").splitlines())


def _paragraphs(comment: str) -> str:
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", comment) if part.strip()]
    return "\n\n".join(prose(part, _ERRORS).replace("Errors:", "**Errors:**", 1) for part in parts)


def page() -> str:
    """The page."""
    parts, items = [_HEAD], list(described())
    for item in items:
        local = item.name.rpartition(".")[2]
        if item.kind == "service":
            parts.append(
                f"{target(_anchor(item.name))}## {local}\n\n{code(item.name)}\n\n{_paragraphs(item.comment)}\n"
            )
        elif item.kind == "rpc":
            parts.append(f"### {local}\n\n{item.type}\n\n{_paragraphs(item.comment)}\n")
    parts.append("## Messages\n")
    for index, item in enumerate(items):
        if item.kind in ("message", "enum"):
            local = item.name.removeprefix("hotslot.")
            parts.append(f"{target(_anchor(item.name))}### {local}\n\n{_paragraphs(item.comment)}\n")
            parts.append(_members(item, items[index + 1 :]))
    return "\n".join(part for part in parts if part)


def _members(owner: Described, following: Sequence[Described]) -> str:
    rows = [
        (str(item.number), code(item.name.rpartition(".")[2]), item.type, prose(item.comment, _ERRORS))
        for item in following
        if item.name.rpartition(".")[0] == owner.name and item.kind in ("field", "value")
    ]
    if owner.kind == "enum":
        return table(("", "value", "meaning"), [(number, name, note) for number, name, _, note in rows])
    return table(("", "field", "type", "meaning"), rows) if rows else "No fields.\n"


_HEAD = """# gRPC

Services, messages and fields, from the comments of `protos/`. The files are self-contained: any language's generator
takes them. Names of a package's messages are unique; two packages may have the same.
"""
