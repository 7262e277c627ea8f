"""What goes wrong when JSON that somebody else wrote is read."""

from __future__ import annotations

import msgspec

FOREIGN_JSON_ERRORS = (msgspec.DecodeError, UnicodeError, RecursionError)
"""Not JSON or of another type, not UTF-8, or nested deeper than a reader follows."""
