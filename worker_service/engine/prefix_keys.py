"""Names for the content of KV blocks: what a block's keys and values depend on, and who may see that they exist."""

import hashlib
import struct
from collections.abc import Sequence

from hotslot.ids import Digest, TenantId
from worker_service.engine.kv_blocks import BlockKey

Mix = tuple[tuple[Digest, float], ...]
"""The adapters that are on, with their weights, by digest; empty is the base alone."""


def root_key(tenant: TenantId, mix: Mix, *, share_base: bool) -> BlockKey:
    """Key of everything that a sequence's blocks depend on besides its tokens.

    The tenant is part of it, because finding a prefix is quicker than computing it, and that would tell one tenant
    what another has asked. Only with `share_base` are prefixes of the base alone shared by all tenants.
    """
    owner = "" if share_base and not mix else tenant
    hashed = hashlib.sha256(f"{owner}\n".encode())
    for digest, weight in mix:
        hashed.update(f"{digest} ".encode() + struct.pack("<d", weight))
    return hashed.digest()


def block_key(parent: BlockKey, token_ids: Sequence[int]) -> BlockKey:
    """The key of a full block that holds these tokens and follows `parent`; collisions cannot be constructed."""
    return hashlib.sha256(parent + struct.pack(f"<{len(token_ids)}q", *token_ids)).digest()
