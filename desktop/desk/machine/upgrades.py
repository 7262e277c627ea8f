"""Another guest image under the same data disk, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

from desk.errors import Conflict, MachineError, UsageError
from desk.machine.bin import BinnedMachine
from desk.machine.checkpoints import Before, Checkpoints, has_disk
from desk.machine.coming_up import Machine
from desk.machine.copies import MachineCopies
from desk.machine.driver import Progress
from desk.machine.images import GuestImage, ImageStore
from desk.machine.manager import Manager
from desk.machine.model import State

_IMAGE, _PREVIOUS = "image", "previous_image"


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The identities of the images before and now, and whether the machine runs the new one."""

    before: str
    after: str
    restarted: bool


class Upgrades:
    """Changes the guest images of machines."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._images = ImageStore(manager.home)
        self._checkpoints = Checkpoints(manager)
        self._copies = MachineCopies(manager)

    def upgrade(self, name: str, source: str, progress: Progress) -> Upgraded:
        """Give the machine the newest installed image, or the one at ``source`` (a path or a URL).

        A running machine is restarted, which ``progress`` is told first. Where it does not come
        up with the new image it is started with the old one again, and ``MachineError`` says so;
        with the disk of before, should the new engine have written what the old one does not read.
        ``desk undo`` brings image and disk of before back: an older engine does not read what a
        newer one has written. Where there is no room for that disk, ``progress`` is told.
        """
        with self._manager.held(name, "setting") as machine:
            before = _image(machine)
            if source:
                progress(f"Installing the guest image {source}")
                image = self._images.install(source)
            else:
                # The newest for the guest's architecture, which stands at the identity's end.
                image = self._images.newest(before.rpartition("-")[2])
        checkpoint = None
        if image.manifest.identity != before:
            checkpoint = self._keep(name, progress)
        return self._change(name, image, progress, checkpoint)

    def _keep(self, name: str, progress: Progress) -> BinnedMachine:
        paths = self._manager.home.machine(name)
        if not self._checkpoints.has_room(paths.data_disk):
            progress("There is no room for a copy of the disk: `desk undo` will not bring it back")
            with self._manager.held(name, "copying") as machine:
                return self._checkpoints.take(machine, Before.UPGRADE)
        progress(f"Copying the disk of machine {name}, for `desk undo`")
        with self._copies.still_disk(name) as (machine, disk):
            return self._checkpoints.take(machine, Before.UPGRADE, disk=disk)

    def back(self, name: str, progress: Progress) -> Upgraded:
        """Give the machine the image that it had before; another ``back`` undoes that."""
        with self._manager.held(name, "setting") as machine:
            _image(machine)
            previous = machine.record.facts.get(_PREVIOUS, "")
            if not previous:
                raise Conflict(
                    f"machine {name} was never upgraded",
                    hint=f"`desk machine upgrade {name}` gives it the newest image.",
                )
            image = self._images.get(previous)
        return self._change(name, image, progress)

    def _change(
        self,
        name: str,
        image: GuestImage,
        progress: Progress,
        checkpoint: BinnedMachine | None = None,
    ) -> Upgraded:
        self._images.check(image)
        wanted = image.manifest.identity
        with self._manager.held(name, "setting") as machine:
            old = {key: machine.record.facts.get(key, "") for key in (_IMAGE, _PREVIOUS)}
            if old[_IMAGE] == wanted:
                return Upgraded(wanted, wanted, restarted=False)
            self._manager.update_facts(machine, {_IMAGE: wanted, _PREVIOUS: old[_IMAGE]})
            runs = machine.driver.state() is not State.STOPPED
        if not runs:
            return Upgraded(old[_IMAGE], wanted, restarted=False)
        progress(f"Restarting machine {name} with the guest image {wanted}")
        try:
            self._manager.restart(name, progress)
        except MachineError as error:
            with self._manager.held(name, "setting") as machine:
                self._manager.update_facts(machine, old)
            disk = self._start_again(name, old[_IMAGE], checkpoint, progress)
            raise MachineError(
                f"machine {name} does not come up with the guest image {wanted} and has"
                f" {old[_IMAGE]}{disk} again: {error.text}",
                hint=error.hint,
            ) from error
        return Upgraded(old[_IMAGE], wanted, restarted=True)

    def _start_again(
        self, name: str, image: str, checkpoint: BinnedMachine | None, progress: Progress
    ) -> str:
        """Start a machine with its image of before, and return what else it has from before.

        Its disk comes first as it is: what was written since the copy would be missing there.
        """
        progress(f"Starting machine {name} with the guest image {image} again")
        try:
            self._manager.start(name, progress)
        except MachineError:
            if checkpoint is None or not has_disk(checkpoint):
                raise
            progress(f"Bringing back the disk of machine {name} from before the upgrade")
            self._checkpoints.bring_disk_back(checkpoint, progress)
            self._manager.start(name, progress)
            return " and its disk of before (`desk undo` exchanges the two disks)"
        return ""


def _image(machine: Machine) -> str:
    """Return the identity of the machine's image; ``UsageError`` where it boots none of ours."""
    image = machine.record.facts.get(_IMAGE, "")
    if not image:
        raise UsageError(
            f"machine {machine.name} boots no guest image that is installed here",
            hint="Machines of the driver qemu do; others are upgraded where they come from.",
        )
    return image
