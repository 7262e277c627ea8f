"""A container's life: start, stop, kill, restart, pause, exit, restart policy, removal."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal as signals
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import msgspec

from deskd.domain.network import NetlinkScript
from deskd.domain.process import Exit
from deskd.domain.signals import parse_signal
from deskd.domain.state import ContainerRecord, Status
from deskd.errors import (
    Conflict,
    DeskdError,
    InvalidArgument,
    NotFound,
    NotModified,
    ResourceExhausted,
)
from deskd.runtime import spec
from deskd.services.containers import laptop_folders, mounting, sharing
from deskd.services.containers.endpoints import Endpoints, chooses_ports, published_ports
from deskd.services.containers.health import HealthChecks
from deskd.services.containers.links import Links
from deskd.services.containers.memory_peaks import MemoryPeaks
from deskd.services.containers.out_of_memory import MemoryWatching
from deskd.services.containers.outcomes import failed_start_code, log_extra, policy_restarts
from deskd.services.containers.registry import Container, ContainerRegistry, WaitResult
from deskd.services.containers.remapping import Remapping
from deskd.services.containers.removal import Removal
from deskd.services.folders import Folders
from deskd.services.ports import Process, Resources, RootFilesystems, Runtime
from deskd.services.publishers import Publishers
from deskd.services.volumes import Volumes

log = logging.getLogger(__name__)

_CHOICES_OF_PORTS = 20
"""How many ports that the engine chooses may be taken on the laptop before a start fails."""

DEFAULT_STOP_TIMEOUT_S = 10
KILL_TIMEOUT_S = 10.0
FIRST_RESTART_DELAY_S = 0.1
MAX_RESTART_DELAY_S = 60.0
STABLE_RUN_S = 10.0


class Lifecycle:
    """Moves containers through their states. Methods take names or IDs."""

    def __init__(
        self,
        registry: ContainerRegistry,
        runtime: Runtime,
        resources: Resources,
        roots: RootFilesystems,
        endpoints: Endpoints,
        volumes: Volumes,
        removal: Removal,
        health: HealthChecks,
        publishers: Publishers,
        memory: MemoryWatching,
        peaks: MemoryPeaks,
        folders: Folders,
        *,
        remapping: Remapping,
        cgroup_parent: str = "",
    ) -> None:
        self._registry = registry
        self._runtime = runtime
        self._resources = resources
        self._roots = roots
        self._endpoints = endpoints
        self._volumes = volumes
        self._removal = removal
        self._health = health
        self._publishers = publishers
        self._folders = folders
        self._remapping = remapping
        self._cgroup_parent = cgroup_parent or spec.DEFAULT_CGROUP_PARENT
        self._memory = memory
        self._peaks = peaks
        self._watchers: set[asyncio.Task[None]] = set()

    # --- start ----------------------------------------------------------------------------------

    async def start(self, reference: str) -> None:
        """Start a container. Raises ``NotModified`` where it runs, ``Conflict`` where it is
        paused or being removed, and what the start meets."""
        container = self._registry.get(reference)
        async with container.lock:
            state = container.record.state
            if state.status is Status.PAUSED:
                raise Conflict("cannot start a paused container, try unpause instead")
            if state.status is Status.RUNNING:
                raise NotModified(f"container {reference} is already running")
            if container.removing or state.status in (Status.REMOVING, Status.DEAD):
                raise Conflict("container is marked for removal and cannot be started")
            _forget_restarts(container)
            try:
                await self.start_locked(container, by_hand=True)
            finally:
                self._publishers.settle(container.id)

    async def start_again(self, container: Container) -> None:
        """Start a container that ran before its machine was restarted; nothing where it runs."""
        async with container.lock:
            if not (container.removing or container.active):
                _forget_restarts(container)
                await self.start_locked(container)

    async def start_locked(self, container: Container, *, by_hand: bool = False) -> None:
        """Start with the lock held; a failure is recorded and leaves nothing running.

        Only a start ``by_hand`` fails for a port that is taken on the laptop: somebody is there to
        choose another one.
        """
        record = container.record
        try:
            async with AsyncExitStack() as undo:
                process = await self._create_process(container, undo, by_hand=by_hand)
                undo.push_async_callback(process.discard)
                self._endpoints.serve_names(record)
                await self._serve_pending(container, process)
                started_at_ns = await process.release()
                undo.pop_all()
        except Exception as error:
            self._record_failed_start(container, error)
            if record.host_config.auto_remove:
                await self.remove_locked(container, volumes=True)
            raise
        state = record.state
        record.move(Status.RUNNING)
        container.ends_with_machine = container.starts_again = False
        state.pid, state.exit_code, state.error = process.pid, 0, ""
        state.oom_killed, state.out_of_memory, state.started_at_ns = False, None, started_at_ns
        state.frozen_for_power = False
        state.runs_on_battery |= by_hand
        container.process = process
        self._peaks.began(container)
        self._health.begin(container, fresh=True)
        self._registry.save(container)
        self._endpoints.refresh_followers(container)
        self._registry.tell(container, "start")
        self.watch(container, process)

    async def _join(
        self, record: ContainerRecord, undo: AsyncExitStack, *, by_hand: bool
    ) -> tuple[NetlinkScript, ...]:
        """Join the container's networks. A port that the engine chose, and that is taken on the
        laptop, makes place for another one."""
        for more in reversed(range(_CHOICES_OF_PORTS)):
            async with AsyncExitStack() as joining:
                scripts = await self._endpoints.join_all(record, joining)
                joining.callback(record.endpoints.clear)
                try:
                    if by_hand:
                        await self._publishers.ask(record.id, record.name, published_ports(record))
                except ResourceExhausted:
                    if not (more and chooses_ports(record)):
                        raise
                    self._publishers.settle(record.id)
                    continue
                undo.push_async_callback(joining.pop_all().aclose)
                return scripts
        raise AssertionError("the last choice is returned or raised")

    async def _create_process(
        self, container: Container, undo: AsyncExitStack, *, by_hand: bool
    ) -> Process:
        record = container.record
        host = record.host_config
        id_map = self._remapping.of(host)
        namespaces = sharing.settle(
            host, lambda reference: self._registry.get(reference).record, self._remapping
        )
        places = await self._folders.find_again(record.name, laptop_folders.wanted(record.mounts))
        record.mounts = laptop_folders.placed(record.mounts, places)
        undo.push_async_callback(self._volumes.release, record.mounts, record.id)
        await self._volumes.hold(record.mounts, record.id)
        mounts = mounting.mount_steps(record.mounts, self._volumes, id_map.root)
        undo.push_async_callback(asyncio.to_thread, self._roots.put_away, record.id)
        root = self._roots.mounts(record.id)
        scripts = await self._join(record, undo, by_hand=by_hand)
        joined = list(record.endpoints.values())
        self._registry.tell_joined(container)
        undo.callback(self._registry.tell_left, container, joined)
        if host.network_mode.startswith("container:"):
            shared = self._registry.get(host.network_mode.removeprefix("container:"))
            files = self._endpoints.files(shared.id)
            record.config = msgspec.structs.replace(
                record.config,
                hostname=shared.record.config.hostname,
                domainname=shared.record.config.domainname,
            )
        else:
            files = await self._endpoints.write_files(record)
        options = host.log_config.config or {}
        plan = spec.build_container_plan(
            spec.ContainerInputs(
                container_id=record.id,
                config=record.config,
                link_environment=Links(self._registry).environment(record),
                host_config=host,
                root=root,
                mounts=mounts,
                hosts_file=files[0],
                hostname_file=files[1],
                resolv_conf_file=files[2],
                networks=scripts,
                name_sockets=self._endpoints.has_names(record),
                namespaces=namespaces,
                log_driver=host.log_config.type,
                log_path=record.log_path,
                log_options=options,
                log_extra=log_extra(record, options),
                cgroup_parent=self._cgroup_parent,
            )
        )
        return await self._runtime.create(plan)

    async def _serve_pending(self, container: Container, process: Process) -> None:
        """Connect the clients that attached before the start; they miss no byte."""
        waiting, container.pending_attaches = container.pending_attaches, []
        for attach in waiting:
            if not attach.stream.done():
                attach.stream.set_result(
                    await process.attach(
                        stdin=attach.stdin, stdout=attach.stdout, stderr=attach.stderr
                    )
                )

    def _record_failed_start(self, container: Container, error: Exception) -> None:
        record = container.record
        text = str(error) or type(error).__name__
        record.state.error = text
        record.state.exit_code = failed_start_code(error)
        record.endpoints = {}
        if record.state.status is Status.RESTARTING:
            record.move(Status.EXITED)
        for attach in container.pending_attaches:
            if not attach.stream.done():
                attach.stream.set_exception(Conflict(text))
        container.pending_attaches = []
        self._registry.save(container)
        container.tell_exit()

    # --- the end of a process -------------------------------------------------------------------

    def watch(self, container: Container, process: Process) -> None:
        """Record the process's end when it comes, in the background."""
        self._memory.begin(container)
        task = asyncio.create_task(self._watch(container, process))
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _watch(self, container: Container, process: Process) -> None:
        ended = await process.wait()
        async with container.lock:
            await self.record_exit(container, ended)

    async def record_exit(self, container: Container, ended: Exit) -> None:
        """Take note of an end, with the lock held: state, event, restart policy, auto-removal."""
        record, state = container.record, container.record.state
        container.process = None
        self._health.end(container)
        self._memory.end(container)
        ran_s = max(ended.finished_at_ns - state.started_at_ns, 0) / 1e9
        self._peaks.ended(container, ended)
        state.pid, state.exit_code = 0, ended.code
        oom_is_news = ended.oom_killed and not state.oom_killed
        state.oom_killed, state.error = state.oom_killed or ended.oom_killed, ended.error
        if oom_is_news:
            self._memory.note(container, own_limit=ended.own_memory_limit)
        state.finished_at_ns = ended.finished_at_ns
        will_restart = self._wants_restart(container)
        auto_remove = record.host_config.auto_remove and not container.starts_again
        record.move(Status.RESTARTING if will_restart else Status.EXITED)
        record.restart_count += will_restart
        left = list(record.endpoints.values())
        await self._leave_networks(container)
        await self._volumes.release(record.mounts, record.id)
        if will_restart or not auto_remove:
            self._registry.save(container)  # else the monitor's record stands until the removal
        if oom_is_news:
            self._memory.tell(container)
        self._registry.tell_end(container, left, ended.code, ran_s)
        container.tell_exit()
        if will_restart:
            self.schedule_restart(container, ran_s)
        elif auto_remove:
            await self.remove_locked(container, volumes=True, wait_for_files=False)
            return
        await self._runtime.forget(record.id)
        if not (will_restart or container.starts_again):
            await asyncio.to_thread(self._roots.put_away, record.id)

    async def _leave_networks(self, container: Container) -> None:
        try:
            await self._endpoints.leave_all(container.record)
        except DeskdError:
            # The end of the process is a fact; what stays reserved is found again at the next
            # engine start.
            log.exception("container %s could not leave its networks", container.record.short_id)

    def _wants_restart(self, container: Container) -> bool:
        policy, state = container.record.host_config.restart_policy, container.record.state
        if state.manually_stopped or container.ends_with_machine:
            return False
        return policy_restarts(policy, state.exit_code, container.record.restart_count)

    def schedule_restart(self, container: Container, ran_s: float) -> None:
        """Start again after a while that grows with each run shorter than ``STABLE_RUN_S``."""
        if ran_s >= STABLE_RUN_S or not container.restart_delay_s:
            container.restart_delay_s = FIRST_RESTART_DELAY_S
        else:
            container.restart_delay_s = min(container.restart_delay_s * 2, MAX_RESTART_DELAY_S)
        container.restart_task = asyncio.create_task(self._restart_later(container))

    async def _restart_later(self, container: Container) -> None:
        await asyncio.sleep(container.restart_delay_s)
        if laptop_folders.wanted(container.record.mounts):
            await self._folders.wait_for_agent()
        async with container.lock:
            if container.removing or container.record.state.status is not Status.RESTARTING:
                return
            container.restart_task = None
            with suppress(DeskdError):  # recorded in the container's state by _start
                await self.start_locked(container)

    # --- stop and signals -----------------------------------------------------------------------

    async def stop(self, reference: str, *, timeout_s: int | None = None, signal: str = "") -> None:
        """Ask the process to end, then kill it. Raises ``NotModified`` where nothing runs."""
        container = self._registry.get(reference)
        if not container.active:
            raise NotModified(f"container {reference} is not running")
        await self._stop(container, timeout_s=timeout_s, signal=signal)

    async def stop_with_machine(
        self, container: Container, *, timeout_s: int, starts_again: bool
    ) -> None:
        """Stop a container because its machine ends, which its restart policy does not take for
        somebody's wish. One that ``starts_again`` is not removed where it would be at its end."""
        container.ends_with_machine, container.starts_again = True, starts_again
        own_s = container.record.config.stop_timeout
        patience_s = DEFAULT_STOP_TIMEOUT_S if own_s is None or own_s < 0 else own_s
        await self._stop(container, timeout_s=min(patience_s, timeout_s), by_hand=False)

    async def _stop(
        self,
        container: Container,
        *,
        timeout_s: int | None = None,
        signal: str = "",
        by_hand: bool = True,
    ) -> None:
        config = container.record.config
        number = parse_signal(signal or config.stop_signal or "SIGTERM")
        if timeout_s is None:
            timeout_s = config.stop_timeout
        if timeout_s is None:
            timeout_s = DEFAULT_STOP_TIMEOUT_S
        container.record.state.manually_stopped |= by_hand
        if await self._stop_restarting(container):
            return
        if container.record.state.status is Status.PAUSED:
            await self.unpause(container.id, by_hand=False)
        ended = container.next_exit()
        if container.process is None:
            ended.cancel()
            return
        self._health.pause(container)
        container.stops_under_way += 1
        try:
            await self._signal(container, number)
            patience_s = None if timeout_s < 0 else float(timeout_s)
            try:
                await asyncio.wait_for(asyncio.shield(ended), patience_s)
            except TimeoutError:
                if container.process is not None:
                    await self._signal(container, int(signals.SIGKILL))
                    await self._wait_for_death(container, ended)
        finally:
            if not ended.done():  # nobody waits for this end any more
                container.stops_under_way = max(container.stops_under_way - 1, 0)

    async def _stop_restarting(self, container: Container) -> bool:
        """End a container that waits for its next start; return whether it was one."""
        async with container.lock:
            if container.record.state.status is not Status.RESTARTING:
                return False
            _cancel_restart(container)
            container.record.move(Status.EXITED)
            self._registry.save(container)
            container.tell_exit()
            self._registry.tell(container, "stop")
            return True

    async def _wait_for_death(
        self, container: Container, ended: asyncio.Future[WaitResult]
    ) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(ended), KILL_TIMEOUT_S)
        except TimeoutError:
            raise Conflict(
                f"cannot stop container {container.record.short_id}: its process did not end "
                f"{KILL_TIMEOUT_S:.0f} s after SIGKILL; it may hang in a system call"
            ) from None

    async def _signal(self, container: Container, number: int) -> None:
        if container.process is not None:
            await container.process.signal(number)
            self._registry.tell(container, "kill", {"signal": str(number)})

    async def kill(self, reference: str, signal: str = "") -> None:
        """Send a signal, SIGKILL unless named. Raises ``Conflict`` where nothing runs."""
        cannot = f"cannot kill container: {reference}:"
        try:
            container = self._registry.get(reference)
            number = parse_signal(signal or "SIGKILL")
        except (NotFound, InvalidArgument) as error:
            raise type(error)(f"{cannot} {error}") from error
        if not container.active:
            raise Conflict(f"{cannot} container {container.id} is not running")
        deadly = number == signals.SIGKILL
        if deadly:
            container.record.state.manually_stopped = True
        if await self._stop_restarting(container):
            return
        ended = container.next_exit()
        await self._signal(container, number)
        if container.process is None:
            ended.cancel()  # it ended by itself in this moment: no further exit will come
            return
        if number in (signals.SIGKILL, signals.SIGTERM) and (
            container.record.state.status is Status.PAUSED
        ):
            # A frozen process cannot die; Docker lets it.
            await self.unpause(container.id, by_hand=False)
        if not deadly:
            ended.cancel()
            return
        await self._wait_for_death(container, ended)

    async def restart(
        self, reference: str, *, timeout_s: int | None = None, signal: str = ""
    ) -> None:
        """Stop where it runs, and start."""
        container = self._registry.get(reference)
        if container.active:
            container.starts_again = True
            try:
                await self._stop(container, timeout_s=timeout_s, signal=signal)
            finally:
                container.starts_again = False
        with suppress(NotModified):  # somebody else was faster
            await self.start(container.id)
        self._registry.tell(container, "restart")

    async def pause(self, reference: str, *, for_power: bool = False) -> None:
        """Freeze all processes. Raises ``Conflict`` where it does not run or is paused."""
        container = self._registry.get(reference)
        async with container.lock:
            status = container.record.state.status
            if status is Status.PAUSED:
                raise Conflict(f"Container {container.id} is already paused")
            if status is Status.RESTARTING:
                raise Conflict(
                    f"Container {reference} is restarting, wait until the container is running"
                )
            if status is not Status.RUNNING:
                raise Conflict(f"container {container.id} is not running")
            # The record first: an engine that dies here leaves nobody frozen who counts as running.
            container.record.move(Status.PAUSED)
            container.record.state.frozen_for_power = for_power
            self._registry.save(container)
            try:
                await in_cgroup(container, self._resources.pause)
            except BaseException:
                container.record.move(Status.RUNNING)
                container.record.state.frozen_for_power = False
                self._registry.save(container)
                raise
            self._health.end(container)
            self._registry.tell(container, "pause")

    async def unpause(self, reference: str, *, by_hand: bool = True) -> None:
        """Thaw all processes. Raises ``Conflict`` where it is not paused."""
        container = self._registry.get(reference)
        async with container.lock:
            if container.record.state.status is not Status.PAUSED:
                raise Conflict(f"Container {container.id} is not paused")
            await in_cgroup(container, self._resources.resume)
            container.record.move(Status.RUNNING)
            container.record.state.frozen_for_power = False
            container.record.state.runs_on_battery |= by_hand
            self._health.begin(container)
            self._registry.save(container)
            self._registry.tell(container, "unpause")

    @asynccontextmanager
    async def held_still(self, reference: str, *, wanted: bool = True) -> AsyncIterator[None]:
        """Freeze a running container for the time of the block, where ``wanted``."""
        container = self._registry.get(reference)
        async with container.lock:
            freeze = wanted and container.record.state.status is Status.RUNNING
            if freeze:
                await in_cgroup(container, self._resources.pause)
                self._registry.tell(container, "pause")
            try:
                yield
            finally:
                if freeze:
                    await in_cgroup(container, self._resources.resume)
                    self._registry.tell(container, "unpause")

    async def resize(self, reference: str, rows: int, columns: int) -> None:
        """Tell the terminal's size. Raises ``Conflict`` where nothing runs."""
        container = self._registry.get(reference)
        if container.process is None:
            raise Conflict(
                f"cannot resize a stopped container: container {container.id} is not running"
            )
        await container.process.resize(rows, columns)
        self._registry.tell(container, "resize", {"height": str(rows), "width": str(columns)})

    # --- removal --------------------------------------------------------------------------------

    async def remove(
        self, reference: str, *, force: bool = False, volumes: bool = False, group: str = ""
    ) -> None:
        """Delete a container, with ``force`` a running one too, with ``volumes`` its anonymous
        volumes; with a ``group`` into the bin. Raises ``Conflict``."""
        container = self._registry.get(reference)
        if container.removing or container.record.state.status is Status.REMOVING:
            raise Conflict(f"removal of container {reference} is already in progress")
        if not force:
            _check_ended(container)
        container.removing = True  # from now on it cannot be started
        try:
            async with container.lock:
                pass  # a start that has begun comes to its end
            if force and container.active:
                await self._kill_for_removal(container)
            async with container.lock:
                if self._registry.find(container.id) is container:
                    _check_ended(container)
                    _cancel_restart(container)
                    await self._removal.remove_locked(container, volumes=volumes, group=group)
        finally:
            container.removing = False

    async def _kill_for_removal(self, container: Container) -> None:
        try:
            await self.kill(container.id)
        except Conflict:
            if container.active:  # else it ended by itself in the meantime
                raise

    async def remove_locked(
        self, container: Container, *, volumes: bool, wait_for_files: bool = True
    ) -> None:
        """Remove with the lock held (``Removal.remove_locked``)."""
        _cancel_restart(container)
        await self._removal.remove_locked(container, volumes=volumes, wait_for_files=wait_for_files)

    # --- name and waiting ------------------------------------------------------------------------

    async def rename(self, reference: str, name: str) -> None:
        """Give another name. Raises ``InvalidArgument`` and ``Conflict``."""
        from deskd.services.containers.names import check_name

        container = self._registry.get(reference)
        if not name:
            raise InvalidArgument("Neither old nor new names may be empty")
        async with container.lock:
            old = container.name
            if name.removeprefix("/") == old:
                raise InvalidArgument("Renaming a container with the same name as its current name")
            try:
                plain = check_name(name)
                self._registry.check_free(plain)
            except (InvalidArgument, Conflict) as error:
                raise type(error)(f"Error when allocating new name: {error}") from error
            self._registry.rename(container, plain)
            self._endpoints.renamed(container.record)
            self._registry.save(container)
            self._registry.tell(container, "rename", {"oldName": f"/{old}"})

    def wait(self, reference: str, condition: str) -> asyncio.Future[WaitResult]:
        """Return the future of an end: ``not-running``, ``next-exit`` or ``removed``."""
        container = self._registry.get(reference)
        if condition in ("", "not-running"):
            if container.active:
                return container.next_exit()
            done: asyncio.Future[WaitResult] = asyncio.get_running_loop().create_future()
            state = container.record.state
            done.set_result(WaitResult(state.exit_code, state.error))
            return done
        if condition == "next-exit":
            return container.next_exit()
        if condition == "removed":
            return container.removal()
        raise InvalidArgument(f'invalid condition: "{condition}"')

    async def close(self) -> None:
        """Stop watching; containers keep running."""
        tasks = list(self._watchers)
        tasks += [c.restart_task for c in self._registry if c.restart_task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def in_cgroup(container: Container, work: Callable[[str], None]) -> None:
    """Do something to a running container's cgroup, in a thread. Raises ``Conflict`` where the
    container has ended in this moment."""
    try:
        await asyncio.to_thread(work, container.id)
    except FileNotFoundError as error:
        raise Conflict(f"Container {container.id} is not running") from error
    except OSError as error:
        if error.errno != errno.ENODEV:  # what an open file of a removed cgroup answers
            raise
        raise Conflict(f"Container {container.id} is not running") from error


def _check_ended(container: Container) -> None:
    """Raise ``Conflict`` for a container that may be removed by force only."""
    if container.active:
        status = container.record.state.status
        word = "paused and must be unpaused first" if status is Status.PAUSED else str(status)
        raise Conflict(
            f'cannot remove container "/{container.name}": container is {word}: stop the '
            "container before removing or force remove"
        )


def _forget_restarts(container: Container) -> None:
    """Let a container begin anew, whatever its restart policy was about to do."""
    _cancel_restart(container)
    container.record.restart_count = 0
    container.restart_delay_s = 0.0
    container.record.state.manually_stopped = False


def _cancel_restart(container: Container) -> None:
    task, container.restart_task = container.restart_task, None
    if task is not None and task is not asyncio.current_task():
        task.cancel()
