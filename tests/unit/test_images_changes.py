"""Dockerfile instructions in ``--change`` of import and commit."""

from __future__ import annotations

import pytest

from deskd import errors
from deskd.domain.container import ContainerConfig
from deskd.images.changes import apply


def changed(*lines: str, config: ContainerConfig | None = None) -> ContainerConfig:
    return apply(config or ContainerConfig(), lines)


def test_command_and_entry_point_take_json_and_shell_form() -> None:
    assert changed('CMD ["a", "b c"]').cmd == ["a", "b c"]
    assert changed("cmd echo hi").cmd == ["/bin/sh", "-c", "echo hi"]
    assert changed("CMD [not json").cmd == ["/bin/sh", "-c", "[not json"]
    base = ContainerConfig(cmd=["old"])
    assert changed('ENTRYPOINT ["x"]', config=base).cmd is None
    assert changed('CMD ["new"]', 'ENTRYPOINT ["x"]', config=base).cmd == ["new"]


def test_environment_and_labels_keep_order_and_quotes() -> None:
    base = ContainerConfig(env=["PATH=/bin", "A=0"], labels={"keep": "1"})
    config = changed(
        "ENV A=1 B=\"two words\" C='$x' D=a\\ b", "ENV E f g", "LABEL x=y", config=base
    )
    assert config.env == ["PATH=/bin", "A=1", "B=two words", "C=$x", "D=a b", "E=f g"]
    assert config.labels == {"keep": "1", "x": "y"}


def test_ports_volumes_directory_user_and_signal() -> None:
    config = changed(
        "EXPOSE 80 53/udp 8000-8002", 'VOLUME ["/a b"]', "VOLUME /c /d", "ENV H=/home",
        "WORKDIR $H/x", "WORKDIR ../y", "USER 1000:1000", "STOPSIGNAL SIGINT", "ONBUILD RUN x",
    )  # fmt: skip
    assert set(config.exposed_ports or {}) == {
        "80/tcp", "53/udp", "8000/tcp", "8001/tcp", "8002/tcp",
    }  # fmt: skip
    assert set(config.volumes or {}) == {"/a b", "/c", "/d"}
    assert (config.working_dir, config.user, config.stop_signal) == (
        "/home/y",
        "1000:1000",
        "SIGINT",
    )
    assert config.on_build == ["RUN x"]


def test_health_check_with_options_and_none() -> None:
    health = changed("HEALTHCHECK --interval=1m30s --retries=3 CMD true").healthcheck
    assert health is not None
    assert (health.test, health.interval, health.retries) == (
        ["CMD-SHELL", "true"],
        90_000_000_000,
        3,
    )
    none = changed("HEALTHCHECK NONE").healthcheck
    assert none is not None
    assert none.test == ["NONE"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("RUN x", "RUN is not a valid change command"),
        ("FOO=bar", "FOO=bar is not a valid change command"),
        ("", "file with no instructions"),
        ("# nothing", "file with no instructions"),
        ("ENV", "ENV requires at least one argument"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("STOPSIGNAL nope", "invalid signal: nope"),
        ("EXPOSE 99999", "Invalid containerPort"),
        ("EXPOSE x", "Invalid containerPort"),
        ("ENV A", "must have two arguments"),
        ("ENV A=1 B", 'can\'t find = in "B"'),
        ('LABEL a="b', "unexpected end"),
        ("VOLUME [1]", "not a JSON list"),
        ("HEALTHCHECK --interval=x CMD y", "invalid duration"),
        ("HEALTHCHECK --what=1 CMD y", "--what=1"),
        ("HEALTHCHECK NOPE", 'Unknown type "NOPE" in HEALTHCHECK'),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD"),
        ("ONBUILD FROM x", "ONBUILD trigger"),
    ],
)
def test_says_what_is_wrong_with_an_instruction(line: str, says: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=says):
        changed(line)


def test_one_change_may_hold_several_lines() -> None:
    config = changed("CMD a\n# and\nENV b=c\n")
    assert (config.cmd, config.env) == (["/bin/sh", "-c", "a"], ["b=c"])


def test_a_command_may_be_empty() -> None:
    assert changed("CMD").cmd == []
