"""The only code that prints: tables, templates, messages, errors, progress.

Results go to standard output; everything else to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, TextIO

from desk.errors import DeskError, EngineError, InvalidRequest, UsageError

Row = Mapping[str, Any]
"""One line of a table: column names as templates use them (``.Names``), and their values."""

_PADDING = 3
_NARROWEST = 10


def out(text: str) -> None:
    """Print a line on standard output."""
    sys.stdout.write(text + "\n")


def out_bytes(data: bytes) -> None:
    """Write bytes to standard output as they are, at once."""
    _write_bytes(sys.stdout, data)


def err_bytes(data: bytes) -> None:
    """Write bytes to standard error as they are, at once."""
    _write_bytes(sys.stderr, data)


def _write_bytes(stream: TextIO, data: bytes) -> None:
    stream.flush()
    binary = stream.buffer
    binary.write(data)
    binary.flush()


def note(text: str) -> None:
    """Print a line on standard error."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def warn(text: str) -> None:
    note(f"WARNING: {text}")


def tell_loss(failure: DeskError) -> None:
    """Say that a stream waits for the engine to come back."""
    note(f"desk: {failure.text}; going on when it is back")


def error(failure: DeskError) -> None:
    """Print an error: one line that names the thing, one that says what to do."""
    note(f"desk: {failure.text}")
    hint = failure.hint or _where_to_look(failure)
    if hint:
        note(hint)


_LISTS = {
    "containers": "`desk ps -a` lists the containers.",
    "images": "`desk images` lists the images.",
    "networks": "`desk network ls` lists the networks.",
    "volumes": "`desk volume ls` lists the volumes.",
}


def _where_to_look(failure: DeskError) -> str:
    """Name the command that lists what the engine did not find."""
    if not isinstance(failure, EngineError) or failure.status != 404:
        return ""
    _, kind, *rest = failure.path.split("/") if failure.path else ("", "")
    # A creation misses something else than what it makes, an archive a file in the container.
    return "" if not rest or rest[-1] in ("create", "archive") else _LISTS.get(kind, "")


# --- tables -------------------------------------------------------------------------------------


def columns(lines: Iterable[Sequence[str]], *, narrowest: int = _NARROWEST) -> str:
    """Align cells in columns as Docker does: three apart, none narrower than ``narrowest``."""
    rows = [list(line) for line in lines]
    count = max((len(row) for row in rows), default=0)
    widths = [
        max(
            (_width(row[index]) + _PADDING for row in rows if index < len(row) - 1),
            default=0,
        )
        for index in range(count)
    ]
    text = []
    for row in rows:
        cells = [
            cell + " " * (max(widths[index], narrowest) - _width(cell))
            for index, cell in enumerate(row[:-1])
        ]
        text.append("".join([*cells, *row[-1:]]) + "\n")
    return "".join(text)


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    cells = wcswidth(text)
    return cells if cells >= 0 else len(text)  # negative: a control character is in it


class Table:
    """Prints rows as Docker's list commands do.

    ``headings`` maps column names to their headings, in the default order of ``default``
    (names). ``quiet`` names the column that ``-q`` prints.
    """

    def __init__(
        self, headings: Mapping[str, str], *, default: Sequence[str], quiet: str = ""
    ) -> None:
        self._headings = headings
        self._default = default
        self._quiet = quiet

    def render(self, rows: Iterable[Row], *, form: str = "", quiet: bool = False) -> str:
        """Return the text for ``form``: empty, ``table``, ``table TEMPLATE``, ``json`` or a
        template; ``TemplateError`` where it is malformed."""
        if quiet and self._quiet and form in ("", "table"):
            return "".join(f"{row[self._quiet]}\n" for row in rows)
        form = form.strip() or "table"
        if form == "json":
            form = "{{json .}}"
        if form == "table":
            return self.lines(rows)
        is_table = form.startswith("table ")
        text = form.removeprefix("table ").lstrip() if is_table else form
        from desk.cli.template import RenderError, Template, TemplateError
        from desk.cli.template_functions import TableRow

        try:
            template = Template(text.replace("\\t", "\t").replace("\\n", "\n"))
        except TemplateError as error:  # 1, where commands that show one object answer 64
            raise InvalidRequest(error.text, hint=error.hint) from error
        try:
            lines = [template.render(TableRow(row)) for row in rows]
        except RenderError as error:
            columns_known = ", ".join(f".{name}" for name in self._headings)
            hint = f"The columns are {columns_known}."
            raise RenderError(error.text, hint=hint) from error
        if is_table:
            heading = template.render(_Headings(self._headings))
            return columns(line.split("\t") for line in [heading, *lines])
        return "".join(line + "\n" for line in lines)

    def lines(self, rows: Iterable[Row]) -> str:
        """Return the default table."""
        heading = [self._headings[name] for name in self._default]
        cells = [[str(row[name]) for name in self._default] for row in rows]
        return columns([heading, *cells])

    def print(self, rows: Iterable[Row], *, form: str = "", quiet: bool = False) -> None:
        sys.stdout.write(self.render(rows, form=form, quiet=quiet))
        sys.stdout.flush()


class _Headings(dict[str, Any]):
    """Headings in place of values; functions such as ``Label`` give their argument."""

    def __init__(self, headings: Mapping[str, str]) -> None:
        super().__init__(headings)
        self["Label"] = lambda name: str(name).rpartition(".")[2]


def print_formatted(values: Sequence[Any], form: str, *, kinds: Sequence[str] = ()) -> None:
    """Print objects as ``inspect`` does: indented JSON, or each by a template that knows what
    ``kinds`` (``desk.cli.structures``) they are of, if given."""
    if not form or form == "json":
        if form == "json":
            from desk.cli.template_functions import to_json

            text = to_json(values)
        else:
            text = json.dumps(list(values), indent=4, ensure_ascii=False)
        out(text)
        return
    from desk.cli.template import Template

    template = Template(form.replace("\\t", "\t").replace("\\n", "\n"))
    if kinds:
        from desk.cli.structures import structured

        values = [structured(value, kind) for value, kind in zip(values, kinds, strict=True)]
    for value in values:
        out(template.render(value))


def render_object(value: Any, form: str) -> str:
    """Return one object by a template, or as JSON for ``json``."""
    from desk.cli.template import Template

    return Template("{{json .}}" if form == "json" else form).render(value)


def object_renderer(form: str, kind: str) -> Callable[[Any], str]:
    """Return what renders one object after the other of a kind (``desk.cli.structures``)."""
    from desk.cli.structures import structured
    from desk.cli.template import Template

    template = Template("{{json .}}" if form == "json" else form)
    return lambda value: template.render(structured(value, kind))


# --- progress -----------------------------------------------------------------------------------


class Progress:
    """Tells on standard error what a long operation does: in one line that is overwritten on a
    terminal, in plain lines elsewhere."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self.live = self._stream.isatty()
        self._shown = False

    def __call__(self, sentence: str) -> None:
        if self.live:
            import shutil

            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\033[K" + sentence[:width])
            self._shown = True
        else:
            self._stream.write(sentence + "\n")
        self._stream.flush()

    def done(self, sentence: str = "") -> None:
        """Erase the live line; ``sentence`` stays."""
        if self._shown:
            self._stream.write("\r\033[K")
            self._shown = False
        if sentence:
            self._stream.write(sentence + "\n")
        self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.done()


def show_progress(
    messages: Iterable[Mapping[str, Any]], *, quiet: bool = False
) -> Mapping[str, Any]:
    """Print Docker's progress objects and return the last. ``stream`` and final ``status``
    lines go to standard output, moving figures to standard error and only on a terminal."""
    last: Mapping[str, Any] = {}
    with Progress() as live:
        for message in messages:
            last = message
            if quiet:
                continue
            if message.get("progressDetail"):
                if sys.stderr.isatty():
                    live(_progress_line(message))
            elif "stream" in message:
                live.done()
                sys.stdout.write(str(message["stream"]))
            elif "status" in message:
                live.done()
                prefix = f"{message['id']}: " if message.get("id") else ""
                out(f"{prefix}{message['status']}")
    sys.stdout.flush()
    return last


def _progress_line(message: Mapping[str, Any]) -> str:
    from desk.cli.units import human_size

    detail = message["progressDetail"]
    prefix = f"{message['id']}: " if message.get("id") else ""
    figures = ""
    if detail.get("current"):
        figures = f" {human_size(detail['current'])}"
        if detail.get("total"):
            figures += f"/{human_size(detail['total'])}"
    return f"{prefix}{message.get('status', '')}{figures}"


def confirm(question: str, *, interactive: Callable[[], bool] | None = None) -> bool:
    """Ask on standard error; anything but y or yes is no, and so is the end of input."""
    ask = interactive or sys.stdin.isatty
    if not ask():
        raise UsageError(
            "this removes things and standard input is no terminal to ask at",
            hint="Add --force to go on without the question.",
        )
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def print_columns(lines: Iterable[Sequence[str]], *, narrowest: int = _NARROWEST) -> None:
    """Print cells in columns; the first line is the heading."""
    sys.stdout.write(columns(lines, narrowest=narrowest))
    sys.stdout.flush()


def write(text: str) -> None:
    """Print a text that has its line ends already on standard output."""
    sys.stdout.write(text)
    sys.stdout.flush()
