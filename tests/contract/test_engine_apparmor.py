"""AppArmor in the guest, whose kernel has it: Docker's default profile, others, and none."""

from __future__ import annotations

import pytest
from tests.engine_places import GuestPlace, execute

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(300)]

CURRENT = "cat /proc/self/attr/current"
MOUNT = f"{CURRENT}; mkdir /m; mount -t tmpfs none /m && echo mounted"
DEFAULT, OWN = "docker-default", "desk-test-rule"
COMPILED = "/usr/share/desk/apparmor_default.policy"


def test_containers_run_under_the_default_profile(guest: GuestPlace) -> None:
    assert "name=apparmor" in guest.api.get("/info")["SecurityOptions"]
    container = guest.api.create("sleep", "600")
    assert guest.api.inspect(container)["AppArmorProfile"] == ""  # chosen at its start
    guest.api.post(f"/containers/{container}/start")
    assert guest.api.inspect(container)["AppArmorProfile"] == DEFAULT
    for fields in ({}, {"User": "nobody"}, {"Privileged": True}):
        found = execute(guest, container, f"exec 2>&1; {CURRENT}", **fields)
        assert found == (0, f"{DEFAULT} (enforce)\n"), fields
    first = guest.api.output("cat", "/proc/1/attr/current")
    assert first == f"{DEFAULT} (enforce)\n"


def test_the_default_profile_forbids_mounts_and_unconfined_does_not(guest: GuestPlace) -> None:
    host = {"CapAdd": ["SYS_ADMIN"]}
    script = f"exec 2>&1; {MOUNT}"
    refused = guest.api.output("sh", "-c", script, HostConfig=host)
    assert refused.startswith(f"{DEFAULT} (enforce)\n")
    assert "Permission denied" in refused
    assert "mounted" not in refused
    host["SecurityOpt"] = ["apparmor=unconfined"]
    assert guest.api.output("sh", "-c", script, HostConfig=host) == "unconfined\nmounted\n"


def test_the_default_profile_leaves_user_namespaces_to_the_filter(guest: GuestPlace) -> None:
    """As Docker's, which was written before AppArmor asked about them."""
    script = f"exec 2>&1; {CURRENT}; unshare -U cat /proc/self/uid_map && echo entered"
    host = {"SecurityOpt": ["seccomp=unconfined"]}
    found = guest.api.output("sh", "-c", script, HostConfig=host, User="nobody")
    assert found == f"{DEFAULT} (enforce)\nentered\n"


def test_a_privileged_container_is_unconfined(guest: GuestPlace) -> None:
    host = {"Privileged": True, "SecurityOpt": [f"apparmor={DEFAULT}"]}
    container = guest.api.run("sleep", "600", HostConfig=host)
    assert guest.api.inspect(container)["AppArmorProfile"] == "unconfined"
    assert execute(guest, container, CURRENT) == (0, "unconfined\n")


def test_a_loaded_profile_of_ones_own_is_used(guest: GuestPlace) -> None:
    """The default profile under another name of the same length is one more profile."""
    policy = "/sys/kernel/security/apparmor"
    guest.api.output("true")  # the engine has mounted securityfs by then
    guest.run(f"sed s/{DEFAULT}/{OWN}/g {COMPILED} >/tmp/own")
    guest.run(f"cat /tmp/own >{policy}/.replace; rm /tmp/own")
    try:
        host = {"SecurityOpt": [f"apparmor={OWN}", "no-new-privileges"]}
        container = guest.api.run("sleep", "600", HostConfig=host)
        assert guest.api.inspect(container)["AppArmorProfile"] == OWN
        assert execute(guest, container, CURRENT) == (0, f"{OWN} (enforce)\n")
        guest.api.delete(f"/containers/{container}", force=True)
    finally:
        guest.run(f"printf {OWN} >{policy}/.remove")


def test_a_profile_that_is_not_loaded_fails_the_start(guest: GuestPlace) -> None:
    container = guest.api.create("true", HostConfig={"SecurityOpt": ["apparmor=nowhere"]})
    refused = guest.api.error("POST", f"/containers/{container}/start")
    assert refused.status == 400
    assert "unable to apply apparmor profile" in refused.message
    assert "no such file or directory" in refused.message
    assert "load the profile nowhere" in refused.message
    state = guest.api.inspect(container)["State"]
    assert (state["Status"], state["ExitCode"]) == ("created", 127)


def test_an_unloaded_default_profile_comes_back_with_the_next_start(guest: GuestPlace) -> None:
    guest.api.output("true")
    guest.run(f"printf {DEFAULT} >/sys/kernel/security/apparmor/.remove")
    assert guest.api.output("sh", "-c", CURRENT) == f"{DEFAULT} (enforce)\n"
