"""Background processes that outlive the command which started them.

A process is remembered in a file of one JSON object, ``{"pid": …, "started": …}``. ``started`` is
the kernel's start time of the process where that can be read without starting a program (Linux:
field 22 of /proc/PID/stat, proc(5)); it tells our process from a later one with the same number.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from desk.errors import DriverError, MachineError
from desk.whole_file import replace_file

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was when it was started. ``started`` is empty where it cannot be known."""

    pid: int
    started: str = ""

    @property
    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        if sys.platform == "linux":
            fields = _stat_fields(self.pid)
            if fields is None or fields[0] in ("Z", "X"):
                return False
            return not self.started or fields[19] == self.started
        return _exists(self.pid)

    @property
    def suspended(self) -> bool:
        """Whether the process is stopped by a signal (known on Linux only)."""
        fields = _stat_fields(self.pid) if sys.platform == "linux" else None
        return fields is not None and fields[0] == "T"

    def signal(self, number: int) -> None:
        """Send a signal; a process that is gone already is no error."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until the process is gone; return whether it is."""
        deadline = time.monotonic() + timeout_s
        while self.alive:
            self._reap()
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        self._reap()
        return True

    def end(self, *, grace_s: float) -> None:
        """End the process: SIGTERM, and after ``grace_s`` seconds SIGKILL."""
        self.signal(signal.SIGTERM)
        if self.wait_gone(grace_s):
            return
        self.kill()

    def kill(self) -> None:
        """End the process at once and wait until it is gone."""
        self.signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
        if not self.wait_gone(10.0):
            raise MachineError(
                f"process {self.pid} does not end",
                hint="It is stuck in the kernel; restarting the computer frees it.",
            )

    def _reap(self) -> None:
        if sys.platform != "win32":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)

    def resident_bytes(self) -> int | None:
        """Return the memory that the process holds on this host; ``None`` where unknown."""
        import subprocess

        if sys.platform == "linux":
            try:
                pages = int(Path(f"/proc/{self.pid}/statm").read_text("ascii").split()[1])
            except (OSError, IndexError, ValueError):
                return None
            return pages * os.sysconf("SC_PAGE_SIZE")
        if sys.platform == "darwin":
            answer = subprocess.run(
                ["/bin/ps", "-o", "rss=", "-p", str(self.pid)],
                capture_output=True,
                text=True,
                timeout=5,
                check=False,
            )
            return int(answer.stdout) * 1024 if answer.stdout.strip().isdigit() else None
        return None

    def resident_in_mappings(self, sizes: Collection[int]) -> int | None:
        """Return what the process holds in its mappings of these sizes (bytes); ``None`` where
        that is unknown: it is read from /proc/PID/smaps of Linux, proc(5)."""
        if sys.platform != "linux":
            return None
        total, counts = 0, False
        try:
            with Path(f"/proc/{self.pid}/smaps").open(
                "r", encoding="utf-8", errors="replace"
            ) as lines:
                for line in lines:
                    name, _, value = line.partition(":")
                    if name == "Size":
                        counts = int(value.split()[0]) * 1024 in sizes
                    elif name == "Rss" and counts:
                        total += int(value.split()[0]) * 1024
        except OSError:
            return None
        return total


def identify(pid: int) -> Process:
    """Return the running process ``pid`` with its start time."""
    fields = _stat_fields(pid) if sys.platform == "linux" else None
    return Process(pid, fields[19] if fields else "")


def remember(process: Process, file: Path) -> None:
    """Write ``process`` to ``file``; a process that cannot be remembered is ended again."""
    try:
        write_whole(file, json.dumps({"pid": process.pid, "started": process.started}) + "\n")
    except BaseException:
        process.kill()
        raise


def recall(file: Path) -> Process | None:
    """Return the live process remembered in ``file``; ``None`` where there is none.

    A file with a bare number, as daemons write it themselves, is understood too.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return None  # cut off in mid-write by a crash: nothing that could be ours
    if isinstance(content, int):
        process = identify(content)
    elif isinstance(content, dict) and isinstance(content.get("pid"), int):
        process = Process(content["pid"], str(content.get("started", "")))
    else:
        return None
    return process if process.pid > 0 and process.alive else None


def spawn_detached(
    argv: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    descriptors: Sequence[int] = (),
) -> Process:
    """Start a program that outlives us, with its output appended to ``log``.

    It gets a session of its own, no terminal and no standard input, and of our descriptors
    ``descriptors`` (not on Windows). On POSIX systems a shell
    stands between for a moment, so that the program is nobody's zombie however long we live.
    Raises ``DriverError`` where the program cannot be started.
    """
    import subprocess

    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        if sys.platform == "win32":
            flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=environment,
                cwd=directory,
                creationflags=flags,
            )
            return identify(child.pid)
        shell = subprocess.run(
            ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=descriptor,
            env=environment,
            cwd=directory,
            start_new_session=True,
            pass_fds=descriptors,
            timeout=30,
            check=True,
        )
        return identify(int(shell.stdout))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise DriverError(f"cannot start {argv[0]}: {error}", hint=f"See {log}.") from error
    finally:
        os.close(descriptor)


def write_whole(file: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace ``file`` by ``text``: readers see the old content or the new, also after a crash.

    Raises ``MachineError`` where that cannot be written; then the old content is still there.
    """
    try:
        replace_file(file, text.encode(), mode=mode)
    except OSError as error:
        raise MachineError(
            f"cannot write {file}: {error.strerror}",
            hint="Make room on that disk, or set DESK_HOME to a directory that you may write to.",
        ) from error


def last_lines(file: Path, count: int = 1, *, limit_bytes: int = 16384) -> list[str]:
    """Return the last ``count`` lines of a log that are not empty; none for a missing file."""
    try:
        with file.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - limit_bytes))
            text = stream.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]


def _stat_fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third on (state first); ``None`` when gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return text[text.rfind(")") + 2 :].split()  # the name in parentheses may hold anything


def _exists(pid: int) -> bool:
    if sys.platform == "win32":
        return _exists_on_windows(pid)
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _exists_on_windows(pid: int) -> bool:
    # os.kill(pid, 0) would send CTRL+C there. Rights and codes: processthreadsapi.h, winbase.h.
    import ctypes

    query_limited_information, still_active = 0x1000, 259
    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined, unused-ignore]
    handle = kernel.OpenProcess(query_limited_information, False, pid)
    if not handle:
        return False
    try:
        code = ctypes.c_ulong()
        return bool(kernel.GetExitCodeProcess(handle, ctypes.byref(code))) and (
            code.value == still_active
        )
    finally:
        kernel.CloseHandle(handle)
