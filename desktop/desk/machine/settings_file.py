"""``machine.toml``: the settings of one machine for a person to read and edit, with comments.

``machine.json`` holds what is in force. A file edited by hand is taken up by the machine's next
start, or by ``desk machine config --apply``; a change by a command is written into both. Nothing is
taken up from a file with a mistake, which is told with its line and column.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from desk.errors import DeskError, UsageError
from desk.machine.driver import Features
from desk.machine.drivers.options import port_number
from desk.machine.engine_settings import LISTS, check_engine_options
from desk.machine.model import LEAST_MEMORY_MIB, MachineSpec
from desk.machine.power_options import check_power
from desk.machine.sharing import check_sharing
from desk.sizes import parse_size

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

DRIVER_TABLE = "driver"
_MIB, _GIB = 1 << 20, 1 << 30
_MARK = "desk looks for this place"

Value = str | int | float | list[str]
"""A setting as the file has it."""


class SettingsMistake(DeskError):
    """``machine.toml`` says something that cannot be; the text begins with FILE:LINE:COLUMN."""


class Kind(enum.Enum):
    """What a value is; the value of the member says it to a person."""

    MEMORY = 'a size such as "2 GiB", or a number of MiB'
    COUNT = "a whole number, 1 or more"
    CPUS = "a number of CPUs, such as 1.5"
    DISK = 'a size such as "60 GiB", or a number of GiB'
    TEXT = "a text in quotes"
    LIST = "a list of texts, as in the comment above it"


@dataclass(frozen=True, slots=True)
class Setting:
    """A key of the file. ``target`` is a field of ``MachineSpec``, or an option of it."""

    table: str
    key: str
    kind: Kind
    target: str
    comment: str
    example: str
    there: Callable[[Features], bool]  # whether machines of such a driver have it
    is_option: bool = True


def _sized(features: Features) -> bool:
    return features.sized


def _portable(features: Features) -> bool:
    return features.portable


def _seeded(features: Features) -> bool:
    return features.has_seed


def _has_ssh(features: Features) -> bool:
    return features.has_ssh


def _powered(features: Features) -> bool:
    return features.shares_power


def _has_folder_devices(features: Features) -> bool:
    return features.folder_devices


SETTINGS = (
    Setting("machine", "memory", Kind.MEMORY, "memory_mib",
            "Memory: a ceiling, moved while the machine runs where that can be.", "",
            _sized, is_option=False),
    Setting("machine", "cpus", Kind.COUNT, "cpus", "Processors.", "", _sized, is_option=False),
    Setting("machine", "disk", Kind.DISK, "disk_gib",
            "Size of the data disk. It takes the room of what is in it, and only grows.", "",
            _portable, is_option=False),
    Setting("network", "dns", Kind.LIST, "dns",
            "Name servers of containers; without them, this computer's.", '["1.1.1.1"]', _seeded),
    Setting("network", "dns-search", Kind.LIST, "dns_search",
            "Domains in which containers look for short names.", '["corp.example"]', _seeded),
    Setting("proxies", "http", Kind.TEXT, "http_proxy",
            "The way of the engine to registries.", '"http://proxy:3128"', _seeded),
    Setting("proxies", "https", Kind.TEXT, "https_proxy", "", '"http://proxy:3128"', _seeded),
    Setting("proxies", "no", Kind.LIST, "no_proxy",
            "Hosts and networks that are reached without a proxy.",
            '[".lan", "10.0.0.0/8"]', _seeded),
    Setting("registries", "mirrors", Kind.LIST, "registry_mirror",
            "Asked before docker.io.", '["https://mirror.example"]', _seeded),
    Setting("registries", "insecure", Kind.LIST, "insecure_registry",
            "Without verified TLS.", '["registry.lan:5000"]', _seeded),
    Setting("folders", "share", Kind.LIST, "share_folder",
            'Folders of this computer that containers may have, ":ro" for reading only. Without'
            ' it, your home folder; ["none"] for none.', '["~", "/srv/data:ro"]', _has_ssh),
    Setting("folders", "by", Kind.TEXT, "share_by",
            "How: sftp, or virtiofs on a Linux computer that has virtiofsd, many times as fast;"
            " auto is virtiofs where owners are kept and QEMU can park the machine.",
            '"auto"', _has_folder_devices),
    Setting("power", "battery-cpus", Kind.CPUS, "battery_cpus",
            "CPUs that containers may use together while this computer is on its battery.", "1.5",
            _powered),
    Setting("power", "source", Kind.TEXT, "power_source",
            "What this computer counts as running on: as it tells (auto), battery or mains.",
            '"auto"', _powered),
    Setting("engine", "labels", Kind.LIST, "engine_label", "", '["zone=a"]', _seeded),
    Setting("engine", "environment", Kind.LIST, "engine_env",
            "Variables of the engine's own process.", '["NAME=VALUE"]', _seeded),
    Setting("engine", "options", Kind.LIST, "engine_opt",
            "Flags of the engine, as dockerd has them.",
            '["icc=false", "log-opt=max-size=10m"]', _seeded),
    Setting("engine", "storage-driver", Kind.TEXT, "storage_driver", "", '"overlay2"', _seeded),
)  # fmt: skip
_BY_NAME = {(each.table, each.key): each for each in SETTINGS}
_OPTIONS = {each.target for each in SETTINGS if each.is_option}


def render(spec: MachineSpec, features: Features) -> str:
    """Return the file of a machine: what is set, and the rest in comments."""
    lines = [
        f"# Settings of a machine with the driver {spec.driver}.",
        "# `desk machine config --edit` checks what you write and applies it; what you write here",
        "# by hand is taken up by the machine's next start, or by `desk machine config --apply`.",
    ]
    table = ""
    for setting in SETTINGS:
        if not setting.there(features):
            continue
        if setting.table != table:
            table = setting.table
            lines += ["", f"[{table}]"]
        if setting.comment:
            lines.append(f"# {setting.comment}")
        value = _value(spec, setting)
        if setting.example or value is None:
            lines.append(f"# {setting.key} = {setting.example}")
        if value is not None:
            lines.append(f"{setting.key} = {_toml(value)}")
    own = {key: spec.options[key] for key in sorted(spec.options.keys() - _OPTIONS)}
    if own:
        lines += ["", f"[{DRIVER_TABLE}]", "# Options of the driver, from the machine's creation."]
        lines += [f"{key} = {_toml(value)}" for key, value in own.items()]
    return "\n".join(lines) + "\n"


def _value(spec: MachineSpec, setting: Setting) -> Value | None:
    """Return a setting as the file has it; ``None`` where it is not set."""
    if not setting.is_option:
        value = getattr(spec, setting.target)
        if setting.kind is Kind.MEMORY:
            whole = value % 1024 == 0
            return f"{value // 1024} GiB" if whole else f"{value} MiB"
        return f"{value} GiB" if setting.kind is Kind.DISK else int(value)
    text = spec.options.get(setting.target, "")
    if not text:
        return None
    if setting.kind is Kind.CPUS:
        count = float(text)
        return int(count) if count.is_integer() else count
    return [item for item in text.split(_separator(setting)) if item] if _lists(setting) else text


def _lists(setting: Setting) -> bool:
    return setting.kind is Kind.LIST


def _separator(setting: Setting) -> str:
    known = LISTS.get(setting.target)
    return known.separator if known is not None else ","


def _toml(value: Value | Sequence[str]) -> str:
    # JSON's texts, numbers and lists of texts are TOML's, too; only DEL must be written otherwise.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# --- reading ------------------------------------------------------------------------------------


def read_text(file: Path) -> str:
    """Return what the file holds; ``SettingsMistake`` where that is no text."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SettingsMistake(
            f"{file} cannot be read: {error.strerror}",
            hint="Make it a file that you may read, or remove it: the next start writes it again.",
        ) from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _line_and_column(data[: error.start].decode("utf-8"), error.start)
        raise _mistake(file, line, column, "this is no UTF-8", "Correct it.") from error


def parse(text: str, file: Path, base: MachineSpec, features: Features) -> MachineSpec:
    """Return the specification that the file asks for; ``SettingsMistake`` where it cannot be.

    What the file does not set is not set, but memory, CPUs and disk, which stay as in ``base``.
    """
    return _Reader(text, file, base, features).read()


def says(text: str, file: Path, spec: MachineSpec, features: Features) -> bool:
    """Whether the text of a file asks for exactly this specification."""
    try:
        return parse(text, file, spec, features) == spec
    except SettingsMistake:
        return False


class _Reader:
    def __init__(self, text: str, file: Path, base: MachineSpec, features: Features) -> None:
        self._text = text
        self._file = file
        self._base = base
        self._features = features

    def read(self) -> MachineSpec:
        document = _document(self._text, self._file).unwrap()
        fields: dict[str, Any] = {}
        options: dict[str, str] = {}
        for table, content in document.items():
            self._check_table(table, content)
            for key, value in content.items():
                if table == DRIVER_TABLE:
                    options[key] = self._driver_option(key, value)
                    continue
                setting = self._setting(table, key)
                read = self._read(setting, value)
                if not setting.is_option:
                    fields[setting.target] = read
                elif read:
                    options[setting.target] = read
        for key in sorted(self._features.needed_options):
            if not options.get(key):
                words = f"the driver {self._base.driver} needs the option {key} in [{DRIVER_TABLE}]"
                raise self._mistake((DRIVER_TABLE,), words, "Write it there again.")
        return replace(self._base, **fields, options=options)

    def _check_table(self, table: str, content: object) -> None:
        known = [each.table for each in SETTINGS if each.there(self._features)]
        known = list(dict.fromkeys([*known, DRIVER_TABLE]))
        if table not in known:
            raise self._mistake((table,), f"there is no table [{table}]", _nearest(table, known))
        if not isinstance(content, dict):
            raise self._mistake((table,), f"{table} is no table", f"Write [{table}] on its line.")

    def _setting(self, table: str, key: str) -> Setting:
        setting = _BY_NAME.get((table, key))
        if setting is not None and setting.there(self._features):
            return setting
        known = [e.key for e in SETTINGS if e.table == table and e.there(self._features)]
        words = f"there is no setting {key} in [{table}]"
        raise self._mistake((table, key), words, _nearest(key, known), of_key=True)

    def _driver_option(self, key: str, value: object) -> str:
        path = (DRIVER_TABLE, key)
        known = sorted({*self._features.options, *self._base.options} - _OPTIONS)
        if key not in known:
            words = f"the driver {self._base.driver} has no option {key}"
            raise self._mistake(path, words, _nearest(key, known), of_key=True)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise self._mistake(path, f"{key} is no text", "Write it in quotes.")
        if key == "ssh_port":
            try:
                port_number(value)
            except UsageError as error:
                raise self._mistake(path, error.text, error.hint) from error
        return value

    def _read(self, setting: Setting, value: object) -> Any:
        path: tuple[str | int, ...] = (setting.table, setting.key)
        if setting.kind is Kind.MEMORY:
            return self._size(setting, value, _MIB, LEAST_MEMORY_MIB)
        if setting.kind is Kind.DISK:
            size_gib = self._size(setting, value, _GIB, 1)
            if size_gib < self._base.disk_gib:
                raise self._mistake(
                    path,
                    f"the disk has {self._base.disk_gib} GiB and cannot become smaller",
                    "It takes the room of what is in it only: see `desk machine disk`.",
                )
            return size_gib
        if setting.kind is Kind.COUNT:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise self._wrong_kind(setting, path)
            return value
        if setting.kind is Kind.CPUS:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise self._wrong_kind(setting, path)
            self._check_option(setting, f"{value:g}", path)
            return f"{value:g}"
        if setting.kind is Kind.TEXT:
            if not isinstance(value, str):
                raise self._wrong_kind(setting, path)
            self._check_option(setting, value, path)
            return value
        if not isinstance(value, list):
            raise self._wrong_kind(setting, path)
        return self._list(setting, value, path)

    def _list(self, setting: Setting, value: list[object], path: tuple[str | int, ...]) -> str:
        separator = _separator(setting)
        texts = []
        for index, item in enumerate(value):
            if not isinstance(item, str) or not item or separator in item or "\n" in item:
                raise self._wrong_kind(setting, (*path, index))
            self._check_option(setting, item, (*path, index))
            texts.append(item)
        return separator.join(texts)

    def _size(self, setting: Setting, value: object, unit_bytes: int, least: int) -> int:
        path = (setting.table, setting.key)
        count = -1
        if isinstance(value, int) and not isinstance(value, bool):
            count = value
        elif isinstance(value, str):
            try:
                count = parse_size(value) // unit_bytes
            except UsageError:
                raise self._wrong_kind(setting, path) from None
        else:
            raise self._wrong_kind(setting, path)
        if count < least:
            unit = "MiB" if unit_bytes == _MIB else "GiB"
            raise self._mistake(
                path, f"{setting.key} is too small", f"At least {least} {unit} are needed."
            )
        return count

    def _check_option(self, setting: Setting, value: str, path: tuple[str | int, ...]) -> None:
        try:
            check_engine_options({setting.target: value})
            check_sharing({setting.target: value})
            check_power({setting.target: value})
        except UsageError as error:
            words = error.text.replace(setting.target, setting.key, 1)
            raise self._mistake(path, words, error.hint) from error

    def _wrong_kind(self, setting: Setting, path: Sequence[str | int]) -> SettingsMistake:
        what = setting.key if len(path) == 2 else f"an item of {setting.key}"
        kind = setting.kind.value if len(path) == 2 else "a text in quotes, not empty"
        example = f" An example: {setting.key} = {setting.example}" if setting.example else ""
        return self._mistake(path, f"{what} is not {kind}", f"Correct it.{example}")

    def _mistake(
        self, path: Sequence[str | int], words: str, hint: str, *, of_key: bool = False
    ) -> SettingsMistake:
        line, column = position(self._text, path, of_key=of_key)
        return _mistake(self._file, line, column, words, hint)


def _mistake(file: Path, line: int, column: int, words: str, hint: str) -> SettingsMistake:
    return SettingsMistake(
        f"{file}:{line}:{column}: {words}", hint=f"{hint} Nothing was changed.".strip()
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    nearest = get_close_matches(name, known, 1)
    return f"Did you mean {nearest[0]}?" if nearest else f"There are: {', '.join(known)}."


def _document(text: str, file: Path) -> TOMLDocument:
    import tomlkit
    from tomlkit.exceptions import ParseError, TOMLKitError

    try:
        return tomlkit.parse(text)
    except ParseError as error:
        line, column = error.line, error.col + 1
        words = str(error).rpartition(" at line ")[0] or str(error)
        words = f"{words[:1].lower()}{words[1:]}"
        raise _mistake(file, line, column, f"this is no TOML: {words}", "Correct it.") from error
    except TOMLKitError as error:
        line = _first_bad_line(text, type(error))
        words = f"this is no TOML: {str(error)[:1].lower()}{str(error)[1:].rstrip('.')}"
        raise _mistake(file, line, 1, words, "Remove one of the two.") from error


def _first_bad_line(text: str, kind: type[Exception]) -> int:
    """Return the first line up to which the text has such an error, whose place is not told."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    lines = text.splitlines(keepends=True)
    for number in range(1, len(lines)):
        try:
            tomlkit.parse("".join(lines[:number]))
        except kind:
            return number
        except TOMLKitError:  # cut off in mid-value: the error looked for is another
            continue
    return max(1, len(lines))


def position(text: str, path: Sequence[str | int], *, of_key: bool = False) -> tuple[int, int]:
    """Return line and column, from 1, of a value (or its key) in a TOML text that can be parsed, or
    of a table's name.

    The library keeps no places: a mark put there shows where it is in the text.
    """
    header = re.compile(rf"^\s*(\[+\s*[\"']?){re.escape(str(path[0]))}[\"']?\s*[\].]", re.MULTILINE)
    found = header.search(text)
    if len(path) == 1 and found:
        return _line_and_column(text, found.end(1))
    marked = _marked(text, path)
    offset = marked.find(f'"{_MARK}"')
    if offset < 0 or marked[:offset] != text[:offset]:
        return _line_and_column(text, found.end(1) if found else 0)
    if of_key:
        line = text[text.rfind("\n", 0, offset) + 1 : offset]
        offset -= len(line.lstrip())
    return _line_and_column(text, offset)


def _marked(text: str, path: Sequence[str | int]) -> str:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    document = tomlkit.parse(text)
    node: Any = document
    try:
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = _MARK
    except (TOMLKitError, KeyError, TypeError, IndexError):
        return ""
    return tomlkit.dumps(document)


def _line_and_column(text: str, offset: int) -> tuple[int, int]:
    before = text[:offset]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def changes(before: MachineSpec, after: MachineSpec) -> list[str]:
    """Return what another specification changes, as ``machine.memory = "4 GiB"``."""
    return [
        f"{table}.{key} {'not set' if value is None else f'= {_toml(value)}'}"
        for table, key, value in _differences(before, after)
    ]


def _differences(
    before: MachineSpec, after: MachineSpec
) -> Iterator[tuple[str, str, Value | None]]:
    """Yield table, key and new value of what the file has otherwise; ``None``: not set."""
    for setting in SETTINGS:
        value = _value(after, setting)
        if value != _value(before, setting):
            yield setting.table, setting.key, value
    for key in sorted((before.options.keys() | after.options.keys()) - _OPTIONS):
        value = after.options.get(key)
        if value != before.options.get(key):
            yield DRIVER_TABLE, key, value


# --- writing ------------------------------------------------------------------------------------


def follow(text: str, file: Path, before: MachineSpec, after: MachineSpec) -> str:
    """Return the text with what changed between two specifications; the rest, comments and all,
    stays. Raises ``SettingsMistake`` where the text is no TOML."""
    document = _document(text, file).unwrap()
    for table, content in document.items():
        if not isinstance(content, dict):
            line, column = position(text, (table,))
            hint = f"Write [{table}] on its line."
            raise _mistake(file, line, column, f"{table} is no table", hint)
    for table, key, value in _differences(before, after):
        text = _with(text, file, table, key, value, document)
    return text


def _with(
    text: str,
    file: Path,
    table: str,
    key: str,
    value: Value | None,
    document: Mapping[str, Any],
) -> str:
    is_there = key in (document.get(table) or {})
    if value is not None and not is_there:
        placed = _below_its_comment(text, table, key, _toml(value))
        if placed:
            return placed
    import tomlkit

    changed = _document(text, file)
    if value is None:
        if is_there:
            changed[table].remove(key)
        return tomlkit.dumps(changed)
    if table not in changed:
        changed[table] = tomlkit.table()
    changed[table][key] = value
    return tomlkit.dumps(changed)


def _below_its_comment(text: str, table: str, key: str, value: str) -> str:
    """Put a setting below the comment with its example; return nothing where there is none."""
    lines = text.splitlines(keepends=True)
    inside = False
    for number, line in enumerate(lines):
        stripped = line.strip()
        if stripped.startswith("["):
            inside = stripped.partition("#")[0].strip() == f"[{table}]"
        elif inside and re.match(rf"#\s*{re.escape(key)}\s*=", stripped):
            end = "" if line.endswith("\n") else "\n"
            return "".join([*lines[: number + 1], f"{end}{key} = {value}\n", *lines[number + 1 :]])
    return ""
