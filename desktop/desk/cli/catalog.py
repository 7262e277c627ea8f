"""All commands: where each is, and the sentence that the overview shows.

Modules are imported when their command runs. The sentences stand here, so that ``desk --help``
imports none of them; a test compares them with the commands' own.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A command's place (``module:attribute`` below ``desk.cli.commands``) and its sentence."""

    target: str
    summary: str


COMMON = {
    "run": Entry("run:run", "Create a container from an image and run it."),
    "exec": Entry("execute:execute", "Execute a command in a running container."),
    "ps": Entry("listing:ps", "List containers."),
    "images": Entry("images:images", "List images."),
    "import": Entry("images:import_", "Make an image of a root file system's tar archive."),
    "logs": Entry("output:logs", "Show what a container wrote."),
    "stop": Entry("lifecycle:stop", "Stop running containers."),
    "rm": Entry("lifecycle:rm", "Remove containers."),
    "undo": Entry("undo:undo", "Bring back what the last command removed, or what is named."),
}

DESK = {
    "up": Entry("up:up", "Create the machine if there is none, and start it."),
    "down": Entry("up:down", "Stop the machine."),
    "machine": Entry("machine:machine", "Manage machines."),
    "env": Entry("env:env", "Print the shell code that points Docker's clients at a machine."),
    "doctor": Entry("doctor:doctor", "Check this computer and the machine, and name remedies."),
    "gui": Entry("gui:gui", "Open the desktop app."),
    "completion": Entry("completion:completion", "Print the shell code for command completion."),
}

CONTAINER = {
    "attach": Entry("output:attach", "Connect this terminal to a running container."),
    "commit": Entry("images:commit", "Make an image of a container's changes."),
    "cp": Entry("copy:cp", "Copy files between a container and this computer."),
    "create": Entry("run:create", "Create a container without starting it."),
    "diff": Entry("details:diff", "List what changed in a container's files."),
    "export": Entry("images:export", "Write a container's files as a tar archive."),
    "kill": Entry("lifecycle:kill", "Kill running containers, or send them a signal."),
    "pause": Entry("lifecycle:pause", "Pause all processes in containers."),
    "port": Entry("details:port", "List a container's published ports."),
    "rename": Entry("lifecycle:rename", "Rename a container."),
    "restart": Entry("lifecycle:restart", "Restart containers."),
    "start": Entry("start:start", "Start stopped containers."),
    "stats": Entry("stats:stats", "Show what containers use of CPU, memory, network and disk."),
    "top": Entry("details:top", "List the processes in a container."),
    "unpause": Entry("lifecycle:unpause", "Let paused containers go on."),
    "update": Entry("lifecycle:update", "Change limits of containers."),
    "wait": Entry("lifecycle:wait", "Wait until containers end, and print their exit codes."),
}

IMAGE = {
    "history": Entry("images:history", "Show how an image was made."),
    "load": Entry("images:load", "Load images from a tar archive."),
    "login": Entry("registries:login", "Log in to a registry."),
    "logout": Entry("registries:logout", "Log out from a registry."),
    "pull": Entry("registries:pull", "Fetch an image from a registry."),
    "push": Entry("registries:push", "Send an image to a registry."),
    "rmi": Entry("images:rmi", "Remove images."),
    "save": Entry("images:save", "Write images to a tar archive."),
    "search": Entry("registries:search", "Search a registry for images."),
    "tag": Entry("images:tag", "Give an image another name."),
}

ENGINE = {
    "events": Entry("system:events", "Show what happens in the engine as it happens."),
    "info": Entry("system:info", "Show facts about the engine and its machine."),
    "inspect": Entry("details:inspect", "Show everything about containers, images and more."),
    "version": Entry("system:version", "Show the versions of Desk and the engine."),
}

GROUPS = {
    "container": Entry("groups:container", "Manage containers."),
    "image": Entry("groups:image", "Manage images."),
    "network": Entry("networks:network", "Manage networks."),
    "registry": Entry(
        "registry:registry", "Manage the machine's own registry, for private images."
    ),
    "system": Entry("groups:system", "Manage the engine: disk use, clean-up, facts, events."),
    "volume": Entry("volumes:volume", "Manage volumes."),
}

SECTIONS = {
    "Common commands": COMMON,
    "Machine and app": DESK,
    "Containers": CONTAINER,
    "Images": IMAGE,
    "Engine": ENGINE,
    "Groups": GROUPS,
}

CONTAINER_GROUP = {
    **{
        name: entry
        for name, entry in {**COMMON, **CONTAINER}.items()
        if name not in ("ps", "images", "import", "undo")
    },
    "ls": Entry("listing:ls", "List containers."),
    "inspect": Entry("details:inspect_container", "Show everything about containers."),
    "prune": Entry("prune:containers", "Remove all stopped containers."),
}

IMAGE_GROUP = {
    **{
        name: entry
        for name, entry in IMAGE.items()
        if name not in ("login", "logout", "rmi", "search")
    },
    "import": COMMON["import"],
    "inspect": Entry("details:inspect_image", "Show everything about images."),
    "ls": Entry("images:ls", "List images."),
    "prune": Entry("prune:images", "Remove unused images."),
    "rm": Entry("images:rm", "Remove images."),
}

SYSTEM_GROUP = {
    "check": Entry(
        "store_check:check", "Check the engine's store of images, layers and containers."
    ),
    "df": Entry("system:df", "Show how much disk images, containers and volumes use."),
    "events": ENGINE["events"],
    "info": ENGINE["info"],
    "prune": Entry("prune:system", "Remove everything that is not in use."),
}
