"""Python for the guest: the standard library, the engine, the command ``docker``, and what these
depend on, compiled."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from guestbuild import elf, recipe
from guestbuild.programs import guest_program, guest_python
from guestbuild.progress import run

PROJECT = Path(__file__).resolve().parent.parent.parent
ENGINE = PROJECT / "guest-engine" / "deskd"
DESKTOP = PROJECT / "desktop" / "desk"


def project() -> dict[str, str | list[str]]:
    """Return the distribution's name, version and the requirements of what the guest has of it."""
    with (PROJECT / "pyproject.toml").open("rb") as file:
        table = tomllib.load(file)["project"]
    engine = table["optional-dependencies"]["engine"]
    commands = [
        line
        for line in table["dependencies"]
        if re.split(r"[<>=]", line)[0] in recipe.COMMANDS_NEED
    ]
    return {
        "name": table["name"],
        "version": table["version"],
        "requires": list(dict.fromkeys([*engine, *commands])),
        "summary": table["description"],
        "license": table["license"],
    }


def fetch_wheels(arch: recipe.Architecture, directory: Path) -> None:
    """Install the requirements, as wheels for the guest's Python, into ``directory``."""
    requirements = project()["requires"]
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".wheels-") as scratch:
        target = Path(scratch, "made")
        argv: list[str | Path] = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
        argv += ["--disable-pip-version-check", "--no-input", "--target", target]
        argv += ["--only-binary=:all:", "--implementation=cp", f"--python-version={recipe.PYTHON}"]
        for platform in arch.wheel_platforms:
            argv.append(f"--platform={platform}")
        argv += [*requirements]
        run(argv, what="fetching the engine's Python packages from PyPI")
        shutil.rmtree(directory, ignore_errors=True)
        target.replace(directory)


def install_stdlib(tree: Path, root: Path) -> Path:
    """Copy the standard library without what the guest cannot use; return its directory."""
    name = f"usr/lib/python{recipe.PYTHON}"
    _copy(tree / name, root / name, recipe.STDLIB_LEFT_OUT)
    return root / name


def install_packages(wheels: Path, root: Path) -> Path:
    """Copy requirements, engine and commands, with their metadata; return the directory."""
    place = root / "usr/lib/python3/dist-packages"
    _copy(wheels, place, recipe.DISTRIBUTION_LEFT_OUT)
    _copy(ENGINE, place / "deskd", ("**/__pycache__", "**/.*"))
    _copy(DESKTOP, place / "desk", ("**/__pycache__", "**/.*", *recipe.DESKTOP_LEFT_OUT))
    facts = project()
    name = str(facts["name"]).replace("-", "_")
    metadata = place / f"{name}-{facts['version']}.dist-info"
    metadata.mkdir()
    lines = ["Metadata-Version: 2.3", f"Name: {facts['name']}", f"Version: {facts['version']}"]
    lines += [f"Summary: {facts['summary']}", f"License-Expression: {facts['license']}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in facts["requires"]]
    (metadata / "METADATA").write_text("\n".join(lines) + "\n", "utf-8")
    (metadata / "INSTALLER").write_text("desk\n", "utf-8")
    return place


def compile_all(arch: recipe.Architecture, tree: Path, root: Path) -> None:
    """Compile everything with the guest's own Python, run through its own loader.

    The root is read-only, so compiled files never need a check against their source. The engine
    keeps its sources, for readable tracebacks; everything else has compiled files only.
    """
    library = root / "usr/lib"
    python = guest_python(arch, tree)
    sourceless = [library / f"python{recipe.PYTHON}", *_other_packages(library)]
    with tempfile.TemporaryDirectory() as scratch:
        base = [
            *python, "-I", "-B", "-m", "compileall", "-q", "-i", "-",
            "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/",
        ]  # fmt: skip
        environment = {"PATH": os.environ["PATH"], "TMPDIR": scratch}
        alone = [source for place in sourceless for source in _sources(place)]
        _compile([*base, "-b"], alone, environment)
        _compile(base, _sources(library / "python3/dist-packages/deskd"), environment)
    for source in alone:
        source.unlink()


def _sources(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


def _compile(argv: list[str], sources: list[Path], environment: dict[str, str]) -> None:
    """Compile on all processors at once. compileall's own way to do that starts
    ``sys.executable``, which is the loader here."""
    count = os.cpu_count() or 1
    with ThreadPoolExecutor(count) as pool:
        done = [
            pool.submit(run, argv, what="compiling Python modules", stdin=listing, env=environment)
            for listing in ("\n".join(map(str, sources[n::count])).encode() for n in range(count))
            if listing
        ]
    for each in done:
        each.result()


_LIST_READ = """
import os, sys
root, tree = sys.argv[1:]
library = root + "/usr/lib"
sys.path[:] = [library + "/python{v}", library + "/python{v}/lib-dynload",
               library + "/python3/dist-packages"]
def list_read():
    maps = (line.split(None, 5) for line in open("/proc/self/maps"))
    read = [fields[5].strip() for fields in maps if len(fields) > 5 and fields[5].startswith("/")]
    modules = list(sys.modules.values())
    read += [getattr(m, "__cached__", None) or getattr(m, "__file__", None) for m in modules]
    for path in filter(None, dict.fromkeys(read)):
        for prefix in (root, tree):
            if path.startswith(prefix + "/usr/"):
                place = path.removeprefix(prefix)
                if place.endswith(".py"):
                    place += "c"
                if os.path.exists(root + place):
                    print(os.path.realpath(root + place).removeprefix(root))
import deskd.__main__, deskd.runtime.launching, deskd.opening
list_read()
print()
import deskd.runtime.launcher, deskd.compose
list_read()
"""
_LOGIN = ("sbin/sshd", "lib/openssh/sshd-session", "lib/openssh/sshd-auth")


def list_prefetch(arch: recipe.Architecture, tree: Path, root: Path) -> None:
    """Write the lists of files that the engine reads while it starts, in the order of their use:
    ``prefetch`` until its greeting, with sshd's programs, and ``prefetch-later`` after it.

    The guest reads them ahead on its other processor. Raises ``BuildError`` where the engine's
    modules cannot be imported with what the image holds.
    """
    program = _LIST_READ.format(v=recipe.PYTHON)
    argv = [*guest_python(arch, tree), "-I", "-S", "-B", "-c", program, str(root), str(tree)]
    output = run(argv, what="importing the engine from the image").decode()
    greeting, _, whole = output.partition("\n\n")
    login = [f"/usr/{name}" for name in _LOGIN if (root / "usr" / name).exists()]
    libraries = elf.needed(root / name.removeprefix("/") for name in login)
    login += [f"/usr/lib/{arch.triplet}/{name}" for name in sorted(libraries)]
    first = dict.fromkeys([*greeting.split(), *login])
    later = [name for name in dict.fromkeys(whole.split()) if name not in first]
    for place, names in (("prefetch", first), ("prefetch-later", later)):
        listing = "".join(f"{name}\n" for name in names)
        (root / "usr/share/desk" / place).write_text(listing, "utf-8")


def _other_packages(library: Path) -> list[Path]:
    place = library / "python3/dist-packages"
    return sorted(
        path
        for path in place.iterdir()
        if path.name != "deskd" and (path.is_dir() or path.suffix == ".py")
        and not path.name.endswith(".dist-info")
    )  # fmt: skip


def compile_confinement(arch: recipe.Architecture, tree: Path, root: Path) -> None:
    """Compile the default AppArmor profile of containers: the guest itself has no compiler."""
    parser = guest_program(arch, tree, "usr/sbin/apparmor_parser")
    # Docker's rules are of that time: what later ones ask about, as user namespaces and message
    # queues, would be refused for want of a rule. The kernel goes on to honour these features.
    features = str(tree / "etc/apparmor.d/abi/3.0")
    parser += ["--skip-kernel-load", "--skip-cache", "--config-file", os.devnull]
    parser += ["--kernel-features", features, "--policy-features", features]
    compiled = root / "usr/share/desk/apparmor_default.policy"
    compiled.parent.mkdir(parents=True, exist_ok=True)
    source = str(ENGINE / "kernel/apparmor_default.profile")
    run([*parser, "--ofile", str(compiled), source], what="compiling the AppArmor profile")


def _copy(source: Path, target: Path, left_out: tuple[str, ...]) -> None:
    """Copy a tree without the relative paths that match a pattern of ``left_out``."""

    def excluded(directory: str, names: list[str]) -> set[str]:
        found = set()
        for name in names:
            path = Path(directory, name).relative_to(source)
            for pattern in left_out:
                deep = pattern.removeprefix("**/")
                if fnmatch.fnmatch(str(path), pattern) or (deep != pattern and path.match(deep)):
                    found.add(name)
        return found | {name for name in names if name == "__pycache__"}

    shutil.copytree(source, target, symlinks=True, ignore=excluded, dirs_exist_ok=True)
