"""nftables through libnftables, in this process: one call is one transaction of the kernel.

A transaction that changes map elements takes about 0.15 ms, the nft program some 5 ms.
Source: libnftables(3), libnftables in Debian's libnftables1.
"""

from __future__ import annotations

import ctypes
import threading

from deskd.errors import SystemFailure, Unsupported

LIBRARY = "libnftables.so.1"

_MISSING = (
    "the firewall rules of container networks cannot be loaded because the kernel lacks a part of "
    "nftables: use a kernel with CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, "
    "CONFIG_NFT_MASQ, CONFIG_NFT_CT and CONFIG_NFT_FIB_INET (--network host and --network none "
    "work without)"
)


class NftablesError(SystemFailure):
    """nftables refused a transaction; nothing of it took effect."""


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise Unsupported(
            f"{LIBRARY} is missing, which container networks need: install the package libnftables1"
        ) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_free.restype = None
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.nft_run_cmd_from_buffer.restype = ctypes.c_int
    for name in ("nft_ctx_buffer_error", "nft_ctx_buffer_output"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_int
    for name in ("nft_ctx_get_error_buffer", "nft_ctx_get_output_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    return library


class Nftables:
    """A libnftables context for the network namespace of the process; safe to share by threads.

    The library is loaded at construction (2 ms).
    """

    def __init__(self) -> None:
        self._library = _load()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise SystemFailure("libnftables could not be set up: the system is out of memory")
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)
        self._lock = threading.Lock()

    def run(self, commands: str) -> str:
        """Run commands in nft's language as one transaction and return what they print.

        Raises ``NftablesError`` with nft's explanation, ``Unsupported`` for a kernel without
        nftables. Nothing has changed then.
        """
        with self._lock:
            if not self._context:
                raise NftablesError("the nftables context is closed")
            code = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
            output: bytes = self._library.nft_ctx_get_output_buffer(self._context) or b""
            error: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if code == 0:
            return output.decode(errors="replace")
        text = error.decode(errors="replace")
        first = text.splitlines()[0].removeprefix("Error: ") if text else "no explanation"
        if "Operation not supported" in text or "Protocol not supported" in text:
            raise Unsupported(f"{_MISSING}; nftables says: {first}")
        if "Operation not permitted" in text:
            raise SystemFailure(
                "firewall rules cannot be set without CAP_NET_ADMIN: run deskd as root"
            )
        raise NftablesError(f"nftables refused a change of the container networks: {first}")

    def close(self) -> None:
        """Free the context; idempotent."""
        with self._lock:
            if self._context:
                self._library.nft_ctx_free(self._context)
                self._context = None
