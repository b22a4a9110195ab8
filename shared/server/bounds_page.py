"""The page of the bounds for people: docs/bounds.md."""

import sys

from shared.server.bounds import GROUPS, MAX_DEPTH, MAX_STRAYS
from shared.server.connection_bounds import (
    HANDSHAKE_S,
    IDLE_S,
    LEAST_BYTES_PER_S,
    MAX_METADATA_BYTES,
    MAX_METADATA_ENTRIES,
    MAX_STREAMS_A_CONNECTION,
)
from shared.server.flood_connections import REFUSED_FOR_S
from shared.server.standard_calls import MAX_BYTES as STANDARD_BYTES
from shared.server.standard_calls import MAX_STREAMS


def as_markdown() -> str:
    """The table for people."""
    lines = [
        "# Bounds of requests",
        "",
        "Each field of a request has a bound, which a server looks at before it decodes the message. A request beyond",
        "one of them is refused with INVALID_ARGUMENT `INVALID_REQUEST`, which names the field and the bound. Entries",
        "are counted in the whole message, lengths are those of one value, in UTF-8. A message as a whole may have",
        f"16 MiB, may nest {MAX_DEPTH} deep, and may hold {MAX_STRAYS:,} fields that the server does not know.",
        "",
        f"A call's metadata may have {MAX_METADATA_ENTRIES} entries and {MAX_METADATA_BYTES:,} bytes. A listener has",
        "`HOTSLOT_MAX_CONNECTIONS` connections at most, and closes more; over one connection there may run",
        f"{MAX_STREAMS_A_CONNECTION:,} calls. A connection has {HANDSHAKE_S:g} s to begin, and goes after {IDLE_S:g} s",
        f"without a call. What a client streams may stall for `HOTSLOT_STREAM_STALL_S`, and comes with"
        f" {LEAST_BYTES_PER_S:,} bytes a",
        "second at least beyond that. A known caller may make `HOTSLOT_MAX_CALLS_PER_S` calls a second; as many more",
        "hear a second later that they are refused, and of still more the connection is closed; its address gets no",
        f"new one for {REFUSED_FOR_S:g} s. As many calls of health and reflection may come from an address without a",
        f"token, with messages of {STANDARD_BYTES:,} bytes; {MAX_STREAMS:,} streams of them may run. The gateway's",
        "bounds are its settings (`HOTSLOT_GATEWAY_MAX_…`).",
        "",
        "Services check more narrowly what depends on settings or on the model, such as the length of a prompt.",
        "",
        "This page is made by `python -m shared.server.bounds_page > docs/bounds.md` from the table beside it.",
        "",
        "| meaning | entries | bytes of one | fields |",
        "|---|---|---|---|",
    ]
    for group in GROUPS:
        entries = f"{group.bound.max_entries:,}" if group.bound.max_entries > 1 else ""
        size = f"{group.bound.max_bytes:,}" if group.bound.max_bytes else ""
        fields = ", ".join(f"`{field}`" for field in group.fields)
        lines.append(f"| {group.meaning} | {entries} | {size} | {fields} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
