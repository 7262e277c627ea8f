"""Reading a blob as one verified stream, whatever happens to the connections below it.

The stream goes on where a connection was cut (``Range``), tries again with growing pauses, never
gives more bytes than the blob's descriptor says, and hashes what passes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from urllib3.exceptions import HTTPError

from deskd.domain.manifest import Descriptor
from deskd.registry.failures import Broken, RegistryError, Unreachable, WrongContent
from deskd.registry.repository import Repository
from deskd.registry.transport import Answer, in_words

ATTEMPTS = 5
FIRST_DELAY_S = 0.5
MAXIMUM_DELAY_S = 30.0
_CHUNK_BYTES = 256 * 1024


class BlobStream:
    """A blocking ``read`` of a blob. ``on_bytes`` gets the sum of bytes that have come,
    ``on_pause`` the seconds until the next try. Close it in every case; ``finish`` when all is
    taken: only then is the content known to be right."""

    def __init__(
        self,
        repository: Repository,
        blob: Descriptor,
        on_bytes: Callable[[int], None] = lambda _: None,
        on_pause: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._repository = repository
        self._blob = blob
        self._on_bytes = on_bytes
        self._on_pause = on_pause
        self._algorithm = blob.digest.partition(":")[0]
        self._hash = hashlib.new(self._algorithm)
        self._position = 0
        self._failures = 0
        self._answer: Answer | None = None
        self._cancellation = repository.transport.cancellation
        self.resumed = False

    def read(self, size: int = -1, /) -> bytes:
        """Return some bytes, at most ``size``; ``b""`` at the blob's end."""
        wanted = _CHUNK_BYTES if size < 0 else size
        if not wanted:
            return b""
        while True:
            self._cancellation.check()
            try:
                data = self._read_some(wanted)
            except (HTTPError, OSError, ValueError, Broken, RegistryError, Unreachable) as error:
                self._recover(error)
                continue
            self._position += len(data)
            if self._position > self._blob.size:
                raise WrongContent(
                    f"the blob {self._blob.digest} is longer than the {self._blob.size} bytes that "
                    "its manifest says: the image is refused"
                )
            if data:
                self._failures = 0
                self._hash.update(data)
                self._on_bytes(self._position)
            return data

    def _read_some(self, wanted: int) -> bytes:
        if self._position >= self._blob.size and self._answer is None:
            return b""
        if self._answer is None:
            self._answer = self._open()
        data: bytes = self._answer.read1(wanted)
        if not data and self._position < self._blob.size:
            raise Broken("the connection was cut")
        if not data:
            self.close()
        return data

    def _open(self) -> Answer:
        answer = self._repository.open_blob(self._blob.digest, self._position)
        if self._position and answer.status == 206:
            start = answer.headers.get("Content-Range", "").partition(" ")[2].partition("-")[0]
            if start != str(self._position):
                answer.close()
                raise WrongContent(
                    f"{self._repository.host} continues the blob {self._blob.digest} at "
                    f"{start or 'an unknown place'} instead of {self._position}"
                )
        elif self._position:
            self._skip(answer)
        return answer

    def _skip(self, answer: Answer) -> None:
        """Pass over what was read already, where a registry sends a blob from its beginning."""
        left = self._position
        while left:
            data = answer.read1(min(left, _CHUNK_BYTES))
            if not data:
                raise Broken("the connection was cut")
            left -= len(data)

    def _recover(self, error: Exception) -> None:
        """Wait for the next try. Raises ``Broken`` after the last, and what no try can mend."""
        self.close()
        self._cancellation.check()
        if isinstance(error, RegistryError) and not error.is_passing:
            raise error
        self._failures += 1
        self.resumed = self.resumed or self._position > 0
        host = self._repository.host
        if self._failures >= ATTEMPTS:
            if isinstance(error, RegistryError | Unreachable):
                raise error
            raise Broken(
                f"the download of {self._blob.digest} from {host} broke off {ATTEMPTS} times in a "
                f"row: {in_words(error, host)}"
            ) from error
        delay_s = min(FIRST_DELAY_S * 2 ** (self._failures - 1), MAXIMUM_DELAY_S)
        delay_s *= random.uniform(0.8, 1.2)
        if isinstance(error, RegistryError):
            delay_s = min(max(delay_s, error.retry_after_s), 2 * MAXIMUM_DELAY_S)
        self._on_pause(delay_s)
        self._cancellation.pause(delay_s)

    def finish(self) -> None:
        """Read what is left and check the digest. Raises ``WrongContent``."""
        while self.read(_CHUNK_BYTES):
            pass
        if f"{self._algorithm}:{self._hash.hexdigest()}" != self._blob.digest:
            raise WrongContent(
                f"filesystem layer verification failed for digest {self._blob.digest}"
            )

    def close(self) -> None:
        """Close the connection below; idempotent."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()


def fetch_small(repository: Repository, blob: Descriptor, limit_bytes: int, what: str) -> bytes:
    """Return a blob that is kept in memory; raises ``WrongContent`` where it is too long."""
    if not 0 < blob.size <= limit_bytes:
        raise WrongContent(
            f"{what} has {blob.size} bytes, where 1 to {limit_bytes} are possible: it is refused"
        )
    stream = BlobStream(repository, blob)
    try:
        parts = []
        while data := stream.read():
            parts.append(data)
        stream.finish()
    finally:
        stream.close()
    return b"".join(parts)
