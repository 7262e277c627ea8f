"""Dockerfile instructions in ``--change`` of import and commit."""

from __future__ import annotations

import re

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


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("$X", "one"), ("${X}y", "oney"), ("$X_y", ""), ("$X-y", "one-y"), ("$1a", "a"),
        ("$$", ""), ("a$", "a$"), ("$X$X", "oneone"),
        ("${N:-def}", "def"), ("${E:-def}", "def"), ("${E-def}", ""), ("${X-def}", "one"),
        ("${X:+alt}", "alt"), ("${E:+alt}", ""), ("${E+alt}", "alt"), ("${N+alt}", ""),
        ("${X:?must}", "one"), ("${N:-$X}", "one"), ("${N:-${X}}", "one"), ("${N:-'$X'}", "$X"),
        ("${N:-a}b}", "ab}"), ("${P#*/}", "b/c"), ("${P##*/}", "c"), ("${P%/*}", "a/b"),
        ("${P%%/*}", "a"), ("${X#no}", "one"), ("${P/\\//-}", "a-b/c"), ("${P//\\//-}", "a-b-c"),
        ("'$X'", "$X"), ('"$X"', "one"), ("\\$X", "$X"), ('"\\$X"', "$X"), ('"\\n"', "\\n"),
        ("\\n", "n"), ("a''b", "ab"), ("a\\ b", "a b"), ("a\\", "a"),
    ],
)  # fmt: skip
def test_variables_and_quotes_are_those_of_a_dockerfile(text: str, becomes: str) -> None:
    base = ContainerConfig(env=["X=one", "E=", "P=a/b/c"])
    assert changed(f"USER {text}", config=base).user == becomes
    assert changed(f"LABEL k={text}", config=base).labels == {"k": becomes}
    assert changed(f"ENV k {text}", config=base).env == ["X=one", "E=", "P=a/b/c", f"k={becomes}"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("${N:?no way}", "N: no way"), ("${N?}", "N: is not allowed to be unset"),
        ("${", "missing '}'"), ("${X", "missing '}'"), ("${N:-a", "missing '}'"),
        ("${}", "bad substitution"), ("${X:=y}", "unsupported modifier"),
        ("'a", "matching single-quote"), ('"a', "matching double-quote"),
    ],
)  # fmt: skip
def test_says_what_is_wrong_with_a_variable_or_quote(text: str, says: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=re.escape(says)):
        changed("ENV X=one", f"USER {text}")


def test_variables_are_those_from_before_the_instruction_and_may_hold_several_words() -> None:
    config = changed(
        "ENV A=1 P='80 81/udp'", "ENV A=2 B=$A", "ENV $B=name", "EXPOSE $P ${Q:-90}",
        'VOLUME ["/v $A"]', "VOLUME /$B", "STOPSIGNAL ${S:-SIGINT}", "USER a\\\nb",
        'LABEL "x" "y z"',
    )  # fmt: skip
    assert config.env == ["A=2", "P=80 81/udp", "B=1", "1=name"]
    assert set(config.exposed_ports or {}) == {"80/tcp", "81/udp", "90/tcp"}
    assert set(config.volumes or {}) == {"/v 2", "/1"}
    assert (config.stop_signal, config.user, config.labels) == ("SIGINT", "ab", {"x": "y z"})


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
        ("ENV =x", "ENV names can not be blank"),
        ("LABEL $N=x", "LABEL names can not be blank"),
        ("EXPOSE 80/icmp", "Invalid proto: icmp"),
        ("VOLUME [1]", "arrays must be comprised of strings only"),
        ("VOLUME []", "VOLUME requires at least one argument"),
        ('CMD ["a", 1]', "arrays must be comprised of strings only"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK --interval=1us CMD x", 'Interval "interval" cannot be less than 1ms'),
        ("HEALTHCHECK --timeout=-5s CMD x", 'Interval "timeout" cannot be less than 1ms'),
        ("HEALTHCHECK --retries CMD x", "missing a value on flag: retries"),
        ("HEALTHCHECK --retries=x CMD x", "--retries must be a number"),
        ("HEALTHCHECK CMD []", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK --interval=x CMD y", "invalid duration"),
        ("HEALTHCHECK --what=1 CMD y", "unknown flag: what"),
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
