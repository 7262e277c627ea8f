"""SFTP, version 3, as sshfs in the machine speaks it, served from the shared folders.

The protocol is that of draft-ietf-secsh-filexfer-02 with OpenSSH's extensions (its PROTOCOL, 4):
renaming over a file, hard links, fsync and the size of the file system. Owners are the one thing
that is told otherwise than it is: this computer's user is root in the machine, and giving a file
away succeeds without effect, because all that is made here belongs to this computer's user.
"""

from __future__ import annotations

import errno
import hmac
import io
import itertools
import logging
import os
import struct
import sys
from collections.abc import Callable
from typing import Literal, Protocol

from desk.agent.shared_tree import Attributes, SharedTree, change_open

_log = logging.getLogger(__name__)

_INIT, _VERSION = 1, 2
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS = 101, 102, 103, 104, 105
_EXTENDED, _EXTENDED_REPLY = 200, 201
_PROTOCOL = 3

_OK, _EOF, _NO_SUCH_FILE, _DENIED, _FAILURE, _BAD_MESSAGE, _UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8
_READ, _WRITE, _APPEND, _CREATE, _TRUNCATE, _EXCLUSIVE = 1, 2, 4, 8, 16, 32
_HAS_SIZE, _HAS_OWNER, _HAS_MODE, _HAS_TIMES, _HAS_MORE = 1, 2, 4, 8, 1 << 31

_EXTENSIONS = (
    (b"posix-rename@openssh.com", b"1"),
    (b"hardlink@openssh.com", b"1"),
    (b"fsync@openssh.com", b"1"),
    *(() if sys.platform == "win32" else ((b"statvfs@openssh.com", b"2"),)),
)
_LONGEST_PACKET_BYTES = 1 << 18
_LONGEST_READ_BYTES = 1 << 17
_NAMES_AT_ONCE = 200
_MOST_HANDLES = 4096
_NOBODY = 65534
_UINT32 = 0xFFFFFFFF


class Stream(Protocol):
    """What a connection is served over; the caller closes it."""

    def makefile(self, mode: Literal["rb"], /) -> io.BufferedIOBase: ...
    def sendall(self, data: bytes, /) -> None: ...


class _Malformed(Exception):
    """A packet that is not what its type says."""


class _Fields:
    """Reads a packet's fields in their order."""

    def __init__(self, data: bytes, root: bytes) -> None:
        self._data = data
        self._root = root
        self._at = 0

    def _take(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) < size:
            raise _Malformed
        self._at += size
        return piece

    def number(self) -> int:
        return int.from_bytes(self._take(4))

    def long(self) -> int:
        return int.from_bytes(self._take(8))

    def text(self) -> bytes:
        return self._take(self.number())

    def path(self) -> str:
        """Return a path, or raise ``PermissionError`` for one that does not begin with ``root``."""
        path = self.text()
        size = len(self._root)
        known = hmac.compare_digest(path[:size], self._root) and path[size : size + 1] in b"/"
        if size and not known:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return os.fsdecode(path[size:])

    def words(self) -> str:
        """Return a text that is the client's own, such as where a link leads."""
        return os.fsdecode(self.text())

    def attributes(self) -> Attributes:
        """Return what is to be set: ``size``, ``mode``, ``times``; owners are left out."""
        flags = self.number()
        found: Attributes = {}
        if flags & _HAS_SIZE:
            found["size"] = self.long()
        if flags & _HAS_OWNER:
            self._take(8)
        if flags & _HAS_MODE:
            found["mode"] = self.number()
        if flags & _HAS_TIMES:
            found["times"] = (self.number(), self.number())
        if flags & _HAS_MORE:
            for _ in range(self.number()):
                self.text()
                self.text()
        return found


def _text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _attributes(found: os.stat_result) -> bytes:
    mine = sys.platform == "win32" or found.st_uid == os.geteuid()
    owner = 0 if mine else _NOBODY
    return struct.pack(
        ">IQIIIII",
        _HAS_SIZE | _HAS_OWNER | _HAS_MODE | _HAS_TIMES,
        found.st_size,
        owner,
        owner,
        found.st_mode & _UINT32,
        max(0, int(found.st_atime)) & _UINT32,
        max(0, int(found.st_mtime)) & _UINT32,
    )


class _Listing:
    """An open directory: read once, given out in pieces."""

    def __init__(self, entries: list[tuple[str, os.stat_result]]) -> None:
        self._entries = iter(entries)

    def piece(self) -> list[tuple[str, os.stat_result]]:
        return list(itertools.islice(self._entries, _NAMES_AT_ONCE))


class SftpConnection:
    """Serves one client; ``serve`` returns at its end with everything closed. The client's paths
    have ``root`` before those of the tree; to one that does not know it nothing is told."""

    def __init__(self, stream: Stream, tree: SharedTree, root: str = "") -> None:
        self._stream = stream
        self._root = root.encode()
        self._tree = tree
        self._numbers = itertools.count(1)
        self._files: dict[bytes, tuple[int, str]] = {}
        self._listings: dict[bytes, _Listing] = {}
        self._requests: dict[int, Callable[[int, _Fields], None]] = {
            3: self._open,
            4: self._close,
            5: self._read,
            6: self._write,
            7: self._stat,
            8: self._stat_open,
            9: self._change,
            10: self._change_open,
            11: self._open_directory,
            12: self._read_directory,
            13: self._remove,
            14: self._make_directory,
            15: self._remove_directory,
            16: self._real_path,
            17: self._stat,  # links are not followed: the machine's kernel does that
            18: self._rename,
            19: self._read_link,
            20: self._symlink,
            _EXTENDED: self._extended,
        }
        self._extended_requests: dict[bytes, Callable[[int, _Fields], None]] = {
            b"posix-rename@openssh.com": self._rename_over,
            b"hardlink@openssh.com": self._link,
            b"fsync@openssh.com": self._sync,
        }
        if sys.platform != "win32":
            self._extended_requests[b"statvfs@openssh.com"] = self._filesystem

    def serve(self) -> None:
        """Answer until the client ends, or sends what is no SFTP."""
        source = self._stream.makefile("rb")
        try:
            while True:
                head = source.read(5)
                if len(head) < 5:
                    return
                size, kind = int.from_bytes(head[:4]), head[4]
                if not 0 < size <= _LONGEST_PACKET_BYTES:
                    _log.warning("a client of the shared folders sent no SFTP; closed")
                    return
                body = source.read(size - 1)
                if len(body) < size - 1:
                    return
                self._answer(kind, body)
        except OSError as error:
            _log.info("a connection of shared folders ended: %s", error)
        finally:
            for descriptor, _path in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def _answer(self, kind: int, body: bytes) -> None:
        if kind == _INIT:
            pairs = b"".join(_text(name) + _text(value) for name, value in _EXTENSIONS)
            self._send(_VERSION, struct.pack(">I", _PROTOCOL) + pairs)
            return
        fields = _Fields(body, self._root)
        number = 0
        try:
            number = fields.number()
            request = self._requests.get(kind)
            if request is None:
                self._status(number, _UNSUPPORTED)
            else:
                request(number, fields)
        except _Malformed:
            self._status(number, _BAD_MESSAGE)
        except (FileNotFoundError, NotADirectoryError) as error:
            self._status(number, _NO_SUCH_FILE, error.strerror or "")
        except ConnectionError:
            raise
        except OSError as error:
            code = _DENIED if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else _FAILURE
            self._status(number, code, error.strerror or "")
        except (ValueError, OverflowError, NotImplementedError) as error:
            # A time or size that this system cannot hold, a name with a zero byte, or an operation
            # that its Python lacks (links' modes): the client is told, and the session goes on.
            self._status(number, _FAILURE, str(error))

    # --- answers -------------------------------------------------------------------------------

    def _send(self, kind: int, *parts: bytes) -> None:
        size = 1 + sum(map(len, parts))
        self._stream.sendall(b"".join((struct.pack(">IB", size, kind), *parts)))

    def _status(self, number: int, code: int, words: str = "") -> None:
        text = _text(words.encode("utf-8", "replace"))
        self._send(_STATUS, struct.pack(">II", number, code), text, _text(b""))

    def _done(self, number: int) -> None:
        self._status(number, _OK)

    def _give_handle(self, number: int) -> bytes:
        handle = b"%d" % next(self._numbers)
        self._send(_HANDLE, struct.pack(">I", number), _text(handle))
        return handle

    def _room_for_handle(self) -> None:
        if len(self._files) + len(self._listings) >= _MOST_HANDLES:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _file(self, handle: bytes) -> tuple[int, str]:
        try:
            return self._files[handle]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    # --- open files ----------------------------------------------------------------------------

    def _open(self, number: int, fields: _Fields) -> None:
        path, wish = fields.path(), fields.number()
        mode = fields.attributes().get("mode", 0o644)
        self._room_for_handle()
        flags = os.O_RDONLY
        if wish & _WRITE:
            flags = os.O_RDWR if wish & _READ else os.O_WRONLY
        for bit, flag in (
            (_APPEND, os.O_APPEND),
            (_CREATE, os.O_CREAT),
            (_TRUNCATE, os.O_TRUNC),
            (_EXCLUSIVE, os.O_EXCL),
        ):
            flags |= flag if wish & bit else 0
        assert isinstance(mode, int)
        descriptor = self._tree.open(path, flags, mode)
        self._files[self._give_handle(number)] = descriptor, path

    def _close(self, number: int, fields: _Fields) -> None:
        handle = fields.text()
        if self._listings.pop(handle, None) is None:
            descriptor, _path = self._file(handle)
            del self._files[handle]
            os.close(descriptor)
        self._done(number)

    def _read(self, number: int, fields: _Fields) -> None:
        (descriptor, _path), offset = self._file(fields.text()), fields.long()
        data = _read_at(descriptor, min(fields.number(), _LONGEST_READ_BYTES), offset)
        if data:
            self._send(_DATA, struct.pack(">II", number, len(data)), data)
        else:
            self._status(number, _EOF)

    def _write(self, number: int, fields: _Fields) -> None:
        (descriptor, path), offset = self._file(fields.text()), fields.long()
        view = memoryview(fields.text())
        with self._tree.echoes.changing(path):
            while view:
                count = _write_at(descriptor, view, offset)
                view, offset = view[count:], offset + count
            self._tree.echoes.note(path, os.fstat(descriptor))
        self._done(number)

    def _stat_open(self, number: int, fields: _Fields) -> None:
        found = os.fstat(self._file(fields.text())[0])
        self._send(_ATTRS, struct.pack(">I", number), _attributes(found))

    def _change_open(self, number: int, fields: _Fields) -> None:
        descriptor, path = self._file(fields.text())
        with self._tree.echoes.changing(path):
            change_open(descriptor, **fields.attributes())
            self._tree.echoes.note(path, os.fstat(descriptor))
        self._done(number)

    def _sync(self, number: int, fields: _Fields) -> None:
        os.fsync(self._file(fields.text())[0])
        self._done(number)

    # --- paths ---------------------------------------------------------------------------------

    def _stat(self, number: int, fields: _Fields) -> None:
        found = self._tree.stat(fields.path())
        self._send(_ATTRS, struct.pack(">I", number), _attributes(found))

    def _change(self, number: int, fields: _Fields) -> None:
        path = fields.path()
        self._tree.change(path, **fields.attributes())
        self._done(number)

    def _open_directory(self, number: int, fields: _Fields) -> None:
        self._room_for_handle()
        entries = self._tree.entries(fields.path())
        self._listings[self._give_handle(number)] = _Listing(entries)

    def _read_directory(self, number: int, fields: _Fields) -> None:
        listing = self._listings.get(fields.text())
        if listing is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        piece = listing.piece()
        if not piece:
            self._status(number, _EOF)
            return
        rows = [_text(os.fsencode(name)) + _text(b"") + _attributes(found) for name, found in piece]
        self._send(_NAME, struct.pack(">II", number, len(rows)), *rows)

    def _remove(self, number: int, fields: _Fields) -> None:
        self._tree.remove(fields.path())
        self._done(number)

    def _make_directory(self, number: int, fields: _Fields) -> None:
        path = fields.path()
        mode = fields.attributes().get("mode", 0o755)
        assert isinstance(mode, int)
        self._tree.mkdir(path, mode)
        self._done(number)

    def _remove_directory(self, number: int, fields: _Fields) -> None:
        self._tree.rmdir(fields.path())
        self._done(number)

    def _real_path(self, number: int, fields: _Fields) -> None:
        path = os.fsencode("/" + fields.path().strip("/"))
        row = _text(self._root + path) + _text(b"") + struct.pack(">I", 0)
        self._send(_NAME, struct.pack(">II", number, 1), row)

    def _rename(self, number: int, fields: _Fields) -> None:
        self._tree.rename(fields.path(), fields.path(), replace=False)
        self._done(number)

    def _rename_over(self, number: int, fields: _Fields) -> None:
        self._tree.rename(fields.path(), fields.path(), replace=True)
        self._done(number)

    def _read_link(self, number: int, fields: _Fields) -> None:
        target = _text(os.fsencode(self._tree.readlink(fields.path())))
        row = target + _text(b"") + struct.pack(">I", 0)
        self._send(_NAME, struct.pack(">II", number, 1), row)

    def _symlink(self, number: int, fields: _Fields) -> None:
        # OpenSSH's order, not the draft's: the target comes first.
        self._tree.symlink(fields.words(), fields.path())
        self._done(number)

    def _link(self, number: int, fields: _Fields) -> None:
        self._tree.link(fields.path(), fields.path())
        self._done(number)

    def _extended(self, number: int, fields: _Fields) -> None:
        request = self._extended_requests.get(fields.text())
        if request is None:
            self._status(number, _UNSUPPORTED)
        else:
            request(number, fields)

    def _filesystem(self, number: int, fields: _Fields) -> None:
        found = self._tree.filesystem(fields.path())
        values = (
            found.f_bsize, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail,
            found.f_files, found.f_ffree, found.f_favail, 0, 0, found.f_namemax,
        )  # fmt: skip
        self._send(_EXTENDED_REPLY, struct.pack(">I11Q", number, *values))


if sys.platform == "win32":

    def _read_at(descriptor: int, size: int, offset: int) -> bytes:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)

    def _write_at(descriptor: int, data: memoryview, offset: int) -> int:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)

else:

    def _read_at(descriptor: int, size: int, offset: int) -> bytes:
        return os.pread(descriptor, size, offset)

    def _write_at(descriptor: int, data: memoryview, offset: int) -> int:
        return os.pwrite(descriptor, data, offset)
