"""``desk stats``: what containers use now."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import click

from desk.cli import complete, options, render
from desk.cli.framework import DeskCommand
from desk.cli.render import Table
from desk.cli.session import Session, pass_session
from desk.cli.units import human_size
from desk.engine.client import EngineClient
from desk.errors import EngineError
from desk.sizes import binary_size

HEADINGS = {
    "BlockIO": "BLOCK I/O",
    "CPUPerc": "CPU %",
    "Container": "CONTAINER",
    "ID": "CONTAINER ID",
    "MemPerc": "MEM %",
    "MemUsage": "MEM USAGE / LIMIT",
    "Name": "NAME",
    "NetIO": "NET I/O",
    "PIDs": "PIDS",
}
_DEFAULT = ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs")
_REFRESH_S = 1.0
_MOST_AT_ONCE = 64
_NOTHING = "--"


def stats_row(name: str, sample: Mapping[str, Any] | None, *, truncate: bool) -> render.Row:
    """Return the columns of one sample; ``None`` gives dashes."""
    if not sample or (not sample.get("memory_stats") and not sample.get("cpu_stats")):
        return dict.fromkeys(HEADINGS, _NOTHING) | {
            "Container": name,
            "MemUsage": "-- / --",
            "NetIO": "-- / --",
            "BlockIO": "-- / --",
        }
    identifier = str(sample.get("id", ""))
    used, limit = memory_bytes(sample)
    received, sent = network_bytes(sample)
    read, written = block_bytes(sample)
    return {
        "BlockIO": f"{human_size(read)} / {human_size(written)}",
        "CPUPerc": f"{cpu_percent(sample):.2f}%",
        "Container": name,
        "ID": identifier[:12] if truncate else identifier,
        "MemPerc": f"{100 * used / limit if limit else 0:.2f}%",
        "MemUsage": f"{binary_size(used)} / {binary_size(limit)}",
        "Name": str(sample.get("name", "")).lstrip("/"),
        "NetIO": f"{human_size(received)} / {human_size(sent)}",
        "PIDs": str((sample.get("pids_stats") or {}).get("current") or 0),
    }


def cpu_percent(sample: Mapping[str, Any]) -> float:
    """Return the CPU use between a sample and the one before, 100 for one whole CPU."""
    now, before = sample.get("cpu_stats") or {}, sample.get("precpu_stats") or {}
    total = _usage(now) - _usage(before)
    system = (now.get("system_cpu_usage") or 0) - (before.get("system_cpu_usage") or 0)
    cpus = (
        now.get("online_cpus") or len((now.get("cpu_usage") or {}).get("percpu_usage") or ()) or 1
    )
    return 100.0 * total / system * cpus if total > 0 and system > 0 else 0.0


def _usage(stats: Mapping[str, Any]) -> int:
    return int((stats.get("cpu_usage") or {}).get("total_usage") or 0)


def memory_bytes(sample: Mapping[str, Any]) -> tuple[int, int]:
    """Return use without the page cache that can be given back, and the limit."""
    memory = sample.get("memory_stats") or {}
    used, details = int(memory.get("usage") or 0), memory.get("stats") or {}
    # cgroup v1 has total_inactive_file, v2 inactive_file.
    for name in ("total_inactive_file", "inactive_file"):
        cache = int(details.get(name) or 0)
        if 0 < cache < used:
            return used - cache, int(memory.get("limit") or 0)
    return used, int(memory.get("limit") or 0)


def network_bytes(sample: Mapping[str, Any]) -> tuple[int, int]:
    """Return bytes received and sent, over all interfaces."""
    interfaces = (sample.get("networks") or {}).values()
    return (
        sum(int(item.get("rx_bytes") or 0) for item in interfaces),
        sum(int(item.get("tx_bytes") or 0) for item in interfaces),
    )


def block_bytes(sample: Mapping[str, Any]) -> tuple[int, int]:
    """Return bytes read and written."""
    entries = (sample.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()
    totals = {"read": 0, "write": 0}
    for entry in entries:
        kind = str(entry.get("op", "")).lower()
        if kind in totals:
            totals[kind] += int(entry.get("value") or 0)
    return totals["read"], totals["write"]


class _Watcher:
    """Follows one container's samples in a thread and keeps the last."""

    def __init__(self, client: EngineClient, name: str) -> None:
        self.name = name
        self.sample: Mapping[str, Any] | None = None
        self.ended = False
        self._stream = client.containers.stats(name)
        threading.Thread(target=self._follow, name=f"stats-{name}", daemon=True).start()

    def _follow(self) -> None:
        try:
            for sample in self._stream:
                self.sample = sample
        except EngineError:
            pass  # the container was removed, or the engine stopped: the row goes
        self.ended = True

    def close(self) -> None:
        self._stream.close()


@click.command(cls=DeskCommand, example="desk stats\ndesk stats --no-stream web db")
@click.option("-a", "--all", "all_", is_flag=True, help="Show stopped ones too.")
@options.table_format
@click.option("--no-stream", is_flag=True, help="Show one sample and end.")
@options.no_trunc
@click.argument("containers", metavar="[CONTAINER]...", nargs=-1, shell_complete=complete.running)
@pass_session
def stats(
    session: Session,
    containers: tuple[str, ...],
    all_: bool,
    form: str,
    no_stream: bool,
    no_trunc: bool,
) -> None:
    """Show what containers use of CPU, memory, network and disk."""
    client = session.client
    table = Table(HEADINGS, default=_DEFAULT)
    if no_stream:
        names = containers or _all_names(client, all_=all_)
        rows = [
            stats_row(name, sample, truncate=not no_trunc)
            for name, sample in zip(names, _one_sample_each(client, names), strict=True)
        ]
        table.print(rows, form=form)
        return
    _watch(client, containers, table, form, all_=all_, truncate=not no_trunc)


def _all_names(client: EngineClient, *, all_: bool) -> tuple[str, ...]:
    return tuple(item["Id"][:12] for item in client.containers.list(all_=all_))


def _one_sample_each(
    client: EngineClient, names: tuple[str, ...]
) -> list[Mapping[str, Any] | None]:
    """Return a sample of each; all at once, as each takes its second or two."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max(1, min(len(names), _MOST_AT_ONCE))) as pool:
        return list(pool.map(lambda name: _one_sample(client, name), names))


def _one_sample(client: EngineClient, name: str) -> Mapping[str, Any] | None:
    with client.containers.stats(name, stream=False) as samples:
        return next(iter(samples), None)


def _watch(
    client: EngineClient,
    containers: Iterable[str],
    table: Table,
    form: str,
    *,
    all_: bool,
    truncate: bool,
) -> None:
    """Print the table again and again until interrupted, or the named containers are gone."""
    fixed = tuple(containers)
    watchers: dict[str, _Watcher] = {}
    pause = threading.Event()
    live = sys.stdout.isatty()
    try:
        while True:
            names = fixed or _all_names(client, all_=all_)
            for name in names:
                if name not in watchers:
                    watchers[name] = _Watcher(client, name)
            for name in [n for n, w in watchers.items() if w.ended or n not in names]:
                if name in fixed and watchers[name].sample is not None:
                    continue
                watchers.pop(name).close()
            rows = [stats_row(w.name, w.sample, truncate=truncate) for w in watchers.values()]
            render.write(("\033[2J\033[H" if live else "") + table.render(rows, form=form))
            if fixed and all(watcher.ended for watcher in watchers.values()):
                return
            pause.wait(_REFRESH_S)
    finally:
        for watcher in watchers.values():
            watcher.close()
