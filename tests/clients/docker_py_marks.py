"""The marks of every module that tests docker-py."""

from __future__ import annotations

import pytest

DOCKER_PY = [
    pytest.mark.root,
    # docker-py leaves the sockets of streams to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
