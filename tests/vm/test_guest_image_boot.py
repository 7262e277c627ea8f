"""The built guest image boots: stages in order, an answer by SSH, data kept, an orderly end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.bench.bench_boot import Bench

COUNT_DEVICE_FILTERS = """
import ctypes, os, struct
cgroup = os.open("/sys/fs/cgroup/init", os.O_RDONLY | os.O_DIRECTORY)
query = ctypes.create_string_buffer(struct.pack("=IIIIQI", cgroup, 6, 0, 0, 0, 0), 64)
if ctypes.CDLL(None, use_errno=True).syscall(321, 16, query, len(query)):  # BPF_PROG_QUERY
    raise OSError(ctypes.get_errno(), "bpf")
print(struct.unpack_from("=I", query, 24)[0])
"""

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def bench(guest_image: Path, tmp_path: Path) -> Bench:
    made = Bench(guest_image, tmp_path, accelerator="tcg", memory_mib=1024)
    made.empty_data_disk()
    return made


def test_two_boots_on_one_data_disk(bench: Bench) -> None:
    """The first makes the file system, the second finds what the first wrote."""
    for number in (1, 2):
        with bench.running() as (port, stages):
            order = [stages[name] for name in ("initramfs", "userspace", "engine")]
            assert order == sorted(order)
            found = bench.ssh(
                port,
                "cat /var/lib/desk/kept 2>/dev/null; echo boot >>/var/lib/desk/kept;"
                " grep -c . /proc/modules >/dev/null && hostname",
                limit_s=30,
            )
            assert found.split() == ["boot"] * (number - 1) + ["bench"]
            assert "200" in bench.ssh(
                port, "deskd dial-stdio", limit_s=30, stdin="GET /_ping HTTP/1.0\r\n\r\n"
            )
            shown = bench.ssh(
                port,
                "docker run --rm busybox echo it runs; docker ps; docker images;"
                " docker machine ls 2>&1",
                limit_s=60,
            )
            assert "it runs\nCONTAINER ID " in shown
            assert "\nREPOSITORY " in shown
            assert "'machine' is not a docker command" in shown
            bench.power_off(port)
    console = bench.console.read_text("utf-8", "replace")
    assert "DESK-ERROR" not in console
    assert "Power down" in console


def test_the_filter_of_devices_is_there_before_any_container(bench: Bench) -> None:
    """Without it the kernel patches itself at the first container's start, which QEMU before 8.1
    turns into a panic now and then."""
    with bench.running() as (port, _stages):
        count = "python3.13 -I -S -"
        assert bench.ssh(port, count, limit_s=30, stdin=COUNT_DEVICE_FILTERS).strip() == "1"
        assert "filter of devices" not in bench.console.read_text("utf-8", "replace")
        bench.power_off(port)


def test_local_scripts_run_and_tools_stay(bench: Bench) -> None:
    for _boot in (1, 2):
        with bench.running() as (port, _stages):
            bench.ssh(
                port,
                "echo 'echo ran >>/var/lib/desk/proof' >/var/lib/desk/bootlocal.sh;"
                " printf '#!/bin/sh\\necho mine\\n' >/usr/local/bin/mine;"
                " chmod +x /usr/local/bin/mine",
                limit_s=30,
            )
            assert bench.ssh(port, "mine", limit_s=30).strip() == "mine"
            proof = bench.ssh(
                port,
                "i=0; until [ -e /run/desk-settled ] || [ $i -ge 60 ]; do i=$((i+1)); sleep 1;"
                " done;"
                " cat /var/lib/desk/proof 2>/dev/null",
                limit_s=90,
            )
            bench.power_off(port)
    assert proof.split() == ["ran"] * proof.count("ran")
    assert "ran" in proof


def test_a_foreign_data_disk_is_left_alone(bench: Bench) -> None:
    content = b"somebody's" * 1000
    with bench.data.open("r+b") as disk:
        disk.write(content)
    with pytest.raises(TimeoutError, match="not a disk of Desk"):
        bench.boot()
    with bench.data.open("rb") as disk:
        assert disk.read(len(content)) == content


def test_a_damaged_root_image_is_named(bench: Bench, tmp_path: Path) -> None:
    damaged = tmp_path / "image"
    shutil.copytree(bench.image, damaged)
    with (damaged / "root.squashfs").open("r+b") as root:
        root.write(bytes(4096))
    bench.image = damaged
    with pytest.raises(TimeoutError, match="install the guest image again"):
        bench.boot()
