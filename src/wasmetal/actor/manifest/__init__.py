"""What a snapshot says of an actor, but for the bytes, which are in chunks.

Dataclasses that convert to values of JSON (``to_json``) and, strictly, back (``from_json``, which raises
SnapshotError): what comes from a file is hostile. Every field is checked before anything is allocated for it; what is
unknown is refused.
"""

from wasmetal.actor.manifest.chunks import Chunk, Pieces
from wasmetal.actor.manifest.granted import Descriptor, GrantedModel, Used
from wasmetal.actor.manifest.handles import (
    BLOCK_BYTES,
    BLOCK_TOKENS,
    DeviceBuffer,
    Handles,
    Held,
    OpenedModel,
    Session,
    SharedBuffer,
)
from wasmetal.actor.manifest.instance import NULL, VALUE_BYTES, Global, Memory, Table
from wasmetal.actor.manifest.whole import HOST, MAX_NAME, Manifest, check_texts

__all__ = [
    "BLOCK_BYTES",
    "BLOCK_TOKENS",
    "HOST",
    "MAX_NAME",
    "NULL",
    "VALUE_BYTES",
    "Chunk",
    "Descriptor",
    "DeviceBuffer",
    "Global",
    "GrantedModel",
    "Handles",
    "Held",
    "Manifest",
    "Memory",
    "OpenedModel",
    "Pieces",
    "Session",
    "SharedBuffer",
    "Table",
    "Used",
    "check_texts",
]
