"""All services of one engine, as the API's handlers get them."""

from __future__ import annotations

from deskd.record import Record
from deskd.services.bin import Bin
from deskd.services.containers.attaching import Attaching
from deskd.services.containers.creation import ContainerCreation
from deskd.services.containers.endpoints import Endpoints
from deskd.services.containers.files import Files
from deskd.services.containers.inspection import Inspection
from deskd.services.containers.lifecycle import Lifecycle
from deskd.services.containers.listing import Listing
from deskd.services.containers.logs import Logs
from deskd.services.containers.machine_restart import MachineRestart
from deskd.services.containers.memory_fit import MemoryFit
from deskd.services.containers.observing import Observing
from deskd.services.containers.out_of_memory import MemoryWatching
from deskd.services.containers.power import PowerPolicy
from deskd.services.containers.registry import ContainerRegistry
from deskd.services.containers.updating import Updating
from deskd.services.disk_use import DiskUse
from deskd.services.distribution import Distribution
from deskd.services.durability import Durability
from deskd.services.events import Events
from deskd.services.exec import Execs
from deskd.services.faults import Faults
from deskd.services.folders import Folders
from deskd.services.images import Images
from deskd.services.memory_use import MemoryUse
from deskd.services.networks import Networks
from deskd.services.publishers import Publishers
from deskd.services.store_checks import StoreChecks
from deskd.services.system import System
from deskd.services.volumes import Volumes


class Engine(Record):
    """The services; ``compose`` fills it."""

    registry: ContainerRegistry
    creation: ContainerCreation
    lifecycle: Lifecycle
    updating: Updating
    listing: Listing
    inspection: Inspection
    logs: Logs
    endpoints: Endpoints
    attaching: Attaching
    observing: Observing
    files: Files
    execs: Execs
    images: Images
    distribution: Distribution
    networks: Networks
    faults: Faults
    volumes: Volumes
    system: System
    events: Events
    publishers: Publishers
    memory: MemoryWatching
    folders: Folders
    store_checks: StoreChecks
    memory_use: MemoryUse
    memory_fit: MemoryFit
    restart: MachineRestart
    power: PowerPolicy
    disk_use: DiskUse
    durability: Durability
    bin: Bin
