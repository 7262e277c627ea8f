"""Guest images: what the machines with a VM of their own boot, installed in ``$DESK_HOME/images``.

An image is a directory, or a tar of one, with ``manifest.json`` and the three files it names; the
format is in docs/architecture.md. Files are verified against the manifest while they are copied;
an image appears in ``$DESK_HOME/images`` whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import platform
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from desk.errors import ImageError
from desk.machine.process import write_whole
from desk.paths import Home

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK_BYTES = 1 << 20
_MANIFEST_LIMIT_BYTES = 1 << 20
_FILE_LIMIT_BYTES = 8 << 30
_REINSTALL = "Install it again: `desk machine image install PATH-OR-URL`."
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,100}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

Fraction = Callable[[str, int, int], None]
"""Called with a sentence, bytes done and bytes in all (0: unknown) while something is copied."""


def host_architecture() -> str:
    """Return this computer's architecture as images name it: ``amd64``, ``arm64``."""
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file of an image. ``size_bytes`` is 0 where the manifest does not say it."""

    file: str
    sha256: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """``manifest.json`` of a guest image."""

    version: str
    arch: str
    kernel: ImageFile
    initramfs: ImageFile
    root: ImageFile
    cmdline: str
    registry: ImageFile | None = None  # what `desk registry` runs; no machine boots from it

    @property
    def files(self) -> tuple[ImageFile, ...]:
        boots = (self.kernel, self.initramfs, self.root)
        return boots if self.registry is None else (*boots, self.registry)

    @property
    def identity(self) -> str:
        """The image's directory name, and the name machines remember: ``VERSION-ARCH``."""
        return f"{self.version}-{self.arch}"

    @property
    def digest(self) -> str:
        """Changes with any byte of the image, and with nothing else."""
        text = "\n".join([*(f.sha256 for f in self.files), self.cmdline])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class GuestImage:
    """An installed image."""

    directory: Path
    manifest: Manifest

    @property
    def kernel(self) -> Path:
        return self.directory / self.manifest.kernel.file

    @property
    def initramfs(self) -> Path:
        return self.directory / self.manifest.initramfs.file

    @property
    def root(self) -> Path:
        return self.directory / self.manifest.root.file

    @property
    def registry(self) -> Path | None:
        """The registry's root file system, where the image has one beside it."""
        entry = self.manifest.registry
        return None if entry is None else self.directory / entry.file


def parse_manifest(text: str, source: str) -> Manifest:
    """Return the manifest in ``text``; raises ``ImageError`` that names ``source``."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ImageError(f"{source} is no JSON: {error}", hint=_REINSTALL) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else None
        raise ImageError(
            f"{source} has format {found}, this Desk knows format {FORMAT}",
            hint="Use a guest image of the same version as Desk.",
        )
    manifest = Manifest(
        version=_text(document, "version", source),
        arch=_text(document, "arch", source),
        kernel=_file(document, "kernel", source),
        initramfs=_file(document, "initramfs", source),
        root=_file(document, "root", source),
        cmdline=_text(document, "cmdline", source),
        registry=_file(document, "registry", source) if "registry" in document else None,
    )
    if not _SAFE_NAME.match(manifest.identity):
        raise ImageError(f"{source}: {manifest.identity!r} cannot name an image", hint=_REINSTALL)
    return manifest


def _text(document: dict[str, Any], key: str, source: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise ImageError(f"{source}: {key} is missing", hint=_REINSTALL)
    return value


def _file(document: dict[str, Any], key: str, source: str) -> ImageFile:
    entry = document.get(key)
    name = entry.get("file") if isinstance(entry, dict) else None
    digest = entry.get("sha256") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not _SAFE_NAME.match(name) or name == MANIFEST:
        raise ImageError(f"{source}: {key} names no file", hint=_REINSTALL)
    if not isinstance(digest, str) or not _SHA256.match(digest):
        raise ImageError(f"{source}: {key} has no SHA-256", hint=_REINSTALL)
    size = entry.get("size", 0) if isinstance(entry, dict) else 0
    return ImageFile(name, digest, size if isinstance(size, int) else 0)


class ImageStore:
    """The installed guest images of one ``Home``."""

    def __init__(self, home: Home) -> None:
        self._directory = home.images

    def installed(self) -> list[GuestImage]:
        """Return the images that can be read, newest version first."""
        try:
            entries = [e for e in self._directory.iterdir() if not e.name.startswith(".")]
        except FileNotFoundError:
            return []
        images = []
        for entry in entries:
            if (entry / MANIFEST).is_file():
                images.append(self._read(entry))
        return sorted(images, key=_newest_last, reverse=True)

    def newest(self, arch: str = "") -> GuestImage:
        """Return the newest image for ``arch`` (this computer's); raises ``ImageError``."""
        wanted = arch or host_architecture()
        for image in self.installed():
            if image.manifest.arch == wanted:
                return image
        raise ImageError(
            f"no guest image for {wanted} is installed in {self._directory}",
            hint="`desk machine image install PATH-OR-URL` installs one; "
            "`vm-images/build` in Desk's source tree builds one.",
        )

    def get(self, identity: str) -> GuestImage:
        """Return the installed image ``VERSION-ARCH``; raises ``ImageError``."""
        directory = self._directory / identity
        if not _SAFE_NAME.match(identity) or not (directory / MANIFEST).is_file():
            raise ImageError(f"guest image {identity} is not installed", hint=_REINSTALL)
        return self._read(directory)

    def check(self, image: GuestImage) -> None:
        """Cheap check before a boot: every file is there at the size it was verified with.

        Raises ``ImageError`` naming the file. ``verify`` reads every byte instead.
        """
        sizes = _sizes(image.directory)
        for entry in image.manifest.files:
            path = image.directory / entry.file
            try:
                size = path.stat().st_size
            except OSError as error:
                raise ImageError(
                    f"guest image file {path} cannot be read: {error.strerror}", hint=_REINSTALL
                ) from error
            expected = sizes.get(entry.file, entry.size_bytes)
            if expected and size != expected:
                raise ImageError(
                    f"guest image file {path} has {size} bytes instead of {expected}",
                    hint=_REINSTALL,
                )

    def verify(self, image: GuestImage, progress: Fraction | None = None) -> None:
        """Read every byte of the image; raises ``ImageError`` naming the damaged file."""
        for entry in image.manifest.files:
            path = image.directory / entry.file
            with _opened(path) as source:
                _copy_verified(source, None, entry, str(path), path.stat().st_size, progress)

    def install(
        self, source: str, progress: Fraction | None = None, *, expect_arch: str = ""
    ) -> GuestImage:
        """Install an image from a directory, a tar (plain, .gz, .xz, .bz2, .zst) or a URL.

        A URL needs ``#sha256=HEX``, the tar's own digest; a path may have it. What is installed
        already, byte for byte, is left alone. Raises ``ImageError``; then nothing has changed.
        """
        place, _, digest = source.partition("#sha256=")
        self._make_directory()
        with ExitStack() as stack:
            staging = Path(tempfile.mkdtemp(prefix=".install-", dir=self._directory))
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            if re.match(r"https?://", place):
                place = str(_download(place, digest, staging / "download", progress))
            elif digest and Path(place).is_file():
                _check_digest(Path(place), digest, progress)
            path = Path(place).expanduser()
            content = staging / "image"
            content.mkdir(mode=0o755)
            if path.is_dir():
                manifest = self._from_directory(path, content, progress, expect_arch)
            elif path.is_file():
                manifest = self._from_tar(path, content, progress, expect_arch)
            else:
                raise ImageError(
                    f"guest image {place} does not exist",
                    hint="Name a directory with manifest.json, a tar of one, or a URL#sha256=HEX.",
                )
            return self._keep(content, manifest)

    def remove(self, identity: str) -> None:
        """Remove an installed image; raises ``ImageError`` when there is none."""
        image = self.get(identity)
        shutil.rmtree(image.directory)

    def _make_directory(self) -> None:
        try:
            # Parents that mkdir makes by itself would be open to others.
            self._directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ImageError(
                f"cannot make {self._directory}: {error.strerror}",
                hint="Set DESK_HOME to a directory that you may write to.",
            ) from error

    def _read(self, directory: Path) -> GuestImage:
        file = directory / MANIFEST
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ImageError(f"{file} cannot be read: {error}", hint=_REINSTALL) from error
        return GuestImage(directory, parse_manifest(text, str(file)))

    def _from_directory(
        self, path: Path, content: Path, progress: Fraction | None, expect_arch: str
    ) -> Manifest:
        manifest = self._read_source_manifest(path / MANIFEST)
        _check_arch(manifest, expect_arch, str(path))
        if self._has(manifest):
            return manifest
        for entry in manifest.files:
            file = path / entry.file
            with _opened(file) as source, _created(content / entry.file) as target:
                _copy_verified(source, target, entry, str(file), file.stat().st_size, progress)
        _write_manifest(content, (path / MANIFEST).read_text("utf-8"))
        return manifest

    def _read_source_manifest(self, file: Path) -> Manifest:
        try:
            return parse_manifest(file.read_text("utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise ImageError(
                f"{file} cannot be read: {error}",
                hint="A guest image is a directory with manifest.json, or a tar of one.",
            ) from error

    def _from_tar(
        self, path: Path, content: Path, progress: Fraction | None, expect_arch: str
    ) -> Manifest:
        """Take manifest.json and the files that it names, wherever they stand; nothing else."""
        with _reading_tar(path):
            with _tar_stream(path) as archive:
                text = _manifest_text(archive, path)
            manifest = parse_manifest(text, f"{path}: {MANIFEST}")
            _check_arch(manifest, expect_arch, str(path))
            if self._has(manifest):
                return manifest
            missing = {entry.file: entry for entry in manifest.files}
            with _tar_stream(path) as archive:
                for name, size_bytes, source in _regular_files(archive):
                    if name not in missing:
                        continue
                    entry = missing.pop(name)
                    with _created(content / name) as target:
                        _copy_verified(
                            source, target, entry, f"{path}: {name}", size_bytes, progress
                        )
        if missing:
            raise ImageError(
                f"{path} is incomplete: {', '.join(missing)} is missing", hint=_REINSTALL
            )
        _write_manifest(content, text)
        return manifest

    def _has(self, manifest: Manifest) -> bool:
        directory = self._directory / manifest.identity
        if not (directory / MANIFEST).is_file():
            return False
        try:
            image = self._read(directory)
            self.check(image)
        except ImageError:
            return False  # damaged: install over it
        return image.manifest == manifest

    def _keep(self, content: Path, manifest: Manifest) -> GuestImage:
        """Move a complete image to its place; a different one of the same name goes first."""
        final = self._directory / manifest.identity
        if not (content / MANIFEST).exists():  # it was installed already
            return self._read(final)
        sizes = {entry.file: (content / entry.file).stat().st_size for entry in manifest.files}
        write_whole(content / _SIZES, json.dumps(sizes) + "\n", mode=0o644)
        try:
            if final.exists():
                # Machines that run hold the old files open; their names may go.
                final.replace(content.with_name("replaced"))
            content.replace(final)
        except OSError as error:
            raise _copy_failure(str(final), error) from error
        return self._read(final)


_SIZES = "verified.json"
"""File sizes at the time of the full check, written by ``install``."""


def _sizes(directory: Path) -> dict[str, int]:
    try:
        document = json.loads((directory / _SIZES).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ImageError(f"{directory / _SIZES} is damaged: {error}", hint=_REINSTALL) from error
    return {str(key): int(value) for key, value in document.items()}


def _newest_last(image: GuestImage) -> tuple[list[int], int]:
    numbers = [int(part) for part in re.findall(r"\d+", image.manifest.version)]
    return numbers, (image.directory / MANIFEST).stat().st_mtime_ns


def _check_arch(manifest: Manifest, expected: str, source: str) -> None:
    if expected and manifest.arch != expected:
        raise ImageError(
            f"guest image {source} is for {manifest.arch}, this computer is {expected}",
            hint=f"Get the image for {expected}.",
        )


def _write_manifest(directory: Path, text: str) -> None:
    write_whole(directory / MANIFEST, text, mode=0o644)


def _regular_files(archive: tarfile.TarFile) -> Iterator[tuple[str, int, IO[bytes]]]:
    for member in archive:
        source = archive.extractfile(member) if member.isreg() else None
        if source is not None:
            yield member.name.rpartition("/")[2], member.size, source


def _manifest_text(archive: tarfile.TarFile, path: Path) -> str:
    for name, _size_bytes, source in _regular_files(archive):
        if name == MANIFEST:
            return source.read(_MANIFEST_LIMIT_BYTES).decode("utf-8")
    raise ImageError(
        f"{path} holds no {MANIFEST}",
        hint="A guest image is a directory with manifest.json, or a tar of one.",
    )


@contextmanager
def _reading_tar(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, UnicodeDecodeError, zlib.error, lzma.LZMAError) as error:
        # tarfile lists what each kind of compression said, one a line.
        reason = str(error).partition(":\n")[0]
        raise ImageError(f"{path} is no whole tar archive: {reason}", hint=_REINSTALL) from error
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error}", hint=_REINSTALL) from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        source = path.open("rb")
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}", hint=_REINSTALL) from error
    with source:
        yield source


@contextmanager
def _created(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("xb") as target:
            yield target
            target.flush()
            os.fsync(target.fileno())
    except (ConnectionError, TimeoutError):
        raise  # from the source, not from this file
    except OSError as error:
        raise _copy_failure(str(path), error) from error


def _copy_failure(what: str, error: OSError) -> ImageError:
    return ImageError(
        f"cannot write the guest image {what}: {error.strerror or error}",
        hint="Make room on that disk, or set DESK_HOME to a directory on another one.",
    )


def _copy_verified(
    source: IO[bytes],
    target: IO[bytes] | None,
    entry: ImageFile,
    where: str,
    size_bytes: int,
    progress: Fraction | None,
) -> None:
    """Copy (or only read) one file and compare its SHA-256 with the manifest's."""
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK_BYTES):
        done += len(chunk)
        if done > _FILE_LIMIT_BYTES:
            raise ImageError(f"{where} is larger than any guest image", hint=_REINSTALL)
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
        if progress is not None:
            progress(f"Verifying {entry.file}", done, size_bytes)
    if done < size_bytes:
        raise ImageError(
            f"guest image file {where} is cut off at {done} of {size_bytes} bytes",
            hint=_REINSTALL,
        )
    if digest.hexdigest() != entry.sha256:
        raise ImageError(
            f"guest image file {where} is damaged: its SHA-256 is not the expected one",
            hint=_REINSTALL,
        )


def _check_digest(path: Path, expected: str, progress: Fraction | None) -> None:
    entry = ImageFile(path.name, expected.lower())
    with _opened(path) as source:
        _copy_verified(source, None, entry, str(path), path.stat().st_size, progress)


def _download(url: str, expected: str, target: Path, progress: Fraction | None) -> Path:
    """Fetch ``url`` to ``target`` and check its SHA-256."""
    if not _SHA256.match(expected.lower()):
        raise ImageError(
            f"the guest image {url} comes without its checksum",
            hint="Write URL#sha256=HEX with the SHA-256 that its publisher tells.",
        )
    import http.client
    import urllib.error
    import urllib.request

    entry = ImageFile(url.rpartition("/")[2] or url, expected.lower())
    try:
        with urllib.request.urlopen(url, timeout=30) as answer, _created(target) as file:
            size = int(answer.headers.get("Content-Length") or 0)
            _copy_verified(answer, file, entry, url, size, progress)
    except urllib.error.URLError as error:
        raise ImageError(
            f"cannot fetch the guest image {url}: {error.reason}",
            hint="Check the address and the network connection, then run the command again.",
        ) from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise ImageError(
            f"the download of the guest image {url} broke off: {error!r}",
            hint="Check the network connection, then run the command again.",
        ) from error
    return target


@contextmanager
def _tar_stream(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar for one pass; Zstandard through the ``zstd`` program where Python lacks it."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"\x28\xb5\x2f\xfd":  # RFC 8878, 3.1.1
        with tarfile.open(path, "r:*") as archive:
            yield archive
        return
    program = shutil.which("zstd")
    if program is None:
        raise ImageError(
            f"{path} is compressed with Zstandard, and no zstd program is installed",
            hint="Install zstd, or unpack the file and name the directory.",
        )
    with tempfile.TemporaryFile() as plain:
        import subprocess

        done = subprocess.run(
            [program, "-dcq", str(path)], stdout=plain, stderr=subprocess.PIPE, check=False
        )
        if done.returncode != 0:
            words = done.stderr.decode("utf-8", "replace").strip()
            raise ImageError(f"{path} is damaged: {words}", hint=_REINSTALL)
        plain.seek(0)
        with tarfile.open(fileobj=plain, mode="r:") as archive:
            yield archive
