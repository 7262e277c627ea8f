"""Shows the live output of one container."""

from __future__ import annotations

import codecs
import re

from PySide6.QtCore import Signal
from PySide6.QtGui import QFontDatabase, QTextCursor
from PySide6.QtWidgets import QLabel, QPlainTextEdit, QVBoxLayout, QWidget

MAX_LINES = 10_000
LONGEST_ESCAPE = 64
# Control sequences of ECMA-48 and operating system commands: colours and titles mean nothing here.
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00\x07]"
)


class LogView(QWidget):
    """A heading and the last ``MAX_LINES`` lines; follows the end unless scrolled away from it.

    Signals:
        closed(): the view was hidden.
    """

    closed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._heading = QLabel("Select a container to see its logs.")
        self._heading.setObjectName("subtitle")
        self._text = QPlainTextEdit()
        self._text.setReadOnly(True)
        self._text.setMaximumBlockCount(MAX_LINES)
        self._text.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self._text.setAccessibleName("Container logs")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 6, 0, 0)
        column.addWidget(self._heading)
        column.addWidget(self._text, 1)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    @property
    def text(self) -> str:
        """What is shown."""
        return self._text.toPlainText()

    def begin(self, heading: str) -> None:
        """Forget the old output and expect another container's."""
        self._heading.setText(heading)
        self._text.clear()
        self._decoder.reset()
        self._held = ""

    def append(self, data: bytes) -> None:
        """Show more output: any bytes, cut anywhere."""
        text = self._held + self._decoder.decode(data)
        cut = _complete(text)
        text, self._held = text[:cut], text[cut:]
        shown = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
        bar = self._text.verticalScrollBar()
        follow = bar.value() >= bar.maximum() - 4
        cursor = QTextCursor(self._text.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.insertText(shown)
        if follow:
            bar.setValue(bar.maximum())

    def end(self, sentence: str) -> None:
        """Say in the heading that no more output will come, and why."""
        self._heading.setText(f"{self._heading.text()} — {sentence}")


def _complete(text: str) -> int:
    """Return how much of ``text`` can be shown: a sequence cut in two waits for its rest."""
    if text.endswith("\r"):
        return len(text) - 1
    escape = text.rfind("\x1b", max(0, len(text) - LONGEST_ESCAPE))
    return escape if escape >= 0 and not _ESCAPES.match(text, escape) else len(text)
