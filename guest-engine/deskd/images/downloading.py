"""Root file systems from the web, for ``docker import http://…``."""

from __future__ import annotations

import asyncio
import http.client
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

from deskd import errors
from deskd.images.progress import LayerProgress, Tell
from deskd.images.streams import CHUNK_BYTES

TIMEOUT_S = 60.0


class Download:
    """An archive that a web server began to send."""

    def __init__(self, url: str, answer: Any) -> None:
        self.url = url
        self._answer = answer

    async def chunks(self, tell: Tell) -> AsyncIterator[bytes]:
        """Yield the bytes, with Docker's progress lines; raises ``Unavailable``."""
        tell({"status": f"Downloading from {self.url}"})
        length = self._answer.headers.get("Content-Length", "")
        progress = LayerProgress(tell, "", int(length) if length.isdecimal() else 0)
        passed = 0
        with self._answer:
            while data := await asyncio.to_thread(self._read):
                passed += len(data)
                progress.count("Importing", passed)
                yield data

    def _read(self) -> bytes:
        try:
            data: bytes = self._answer.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise errors.Unavailable(
                f"the download of {self.url} broke off ({error}): import it again"
            ) from error
        return data


async def download(source: str) -> Download:
    """Ask for an http or https URL (http where it does not say); raises ``InvalidArgument``."""
    url = source if "://" in source else f"http://{source}"
    if not url.startswith(("http://", "https://")):
        raise errors.InvalidArgument(f"cannot import from {url}: only http and https URLs are read")
    try:
        answer = await asyncio.to_thread(urllib.request.urlopen, url, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise errors.InvalidArgument(
            f"failed to GET {url} with status {error.code} {error.reason}: check the URL"
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        text = str(getattr(reason, "strerror", None) or reason).lower()
        raise errors.InvalidArgument(
            f'Get "{url}": {text}: check the URL, and that the machine reaches it'
        ) from error
    return Download(url, answer)
