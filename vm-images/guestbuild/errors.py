"""The one error of the build: what failed and what to do about it."""

from __future__ import annotations


class BuildError(Exception):
    """The image cannot be built; the text is one sentence that names the thing and the remedy."""
