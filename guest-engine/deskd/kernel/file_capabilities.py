"""The attribute ``security.capability`` of files: ``struct vfs_ns_cap_data`` of linux/capability.h.

Revision 3 names the root of the user namespace that the capabilities hold in, revision 2 means
the machine's own root.
"""

from __future__ import annotations

import struct

FILE_XATTR = "security.capability"

_REVISION_MASK = 0xFF000000
_REVISION_2 = 0x02000000
_REVISION_3 = 0x03000000
_SETS = slice(4, 20)


def file_capabilities(value: bytes, root_uid: int = 0) -> bytes:
    """Return the attribute for the user namespace whose root is the machine's ``root_uid``. What
    is no such attribute stays as it is."""
    if len(value) not in (20, 24):
        return value
    (magic,) = struct.unpack_from("<I", value)
    if magic & _REVISION_MASK not in (_REVISION_2, _REVISION_3):
        return value
    flags = magic & ~_REVISION_MASK
    if not root_uid:
        return struct.pack("<I", _REVISION_2 | flags) + value[_SETS]
    return struct.pack("<I", _REVISION_3 | flags) + value[_SETS] + struct.pack("<I", root_uid)
