"""Image references: the distribution grammar, normal form and familiar form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskd import errors
from deskd.domain.reference import Reference, from_repository, parse

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "normal", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox", "busybox"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("me/app:v1", "docker.io/me/app:v1", "me/app:v1"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000/app:1", "localhost:5000/app:1", "localhost:5000/app:1"),
        ("quay.io/a/b/c", "quay.io/a/b/c", "quay.io/a/b/c"),
        ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}", f"busybox@{DIGEST}"),
        (f"a/b:t@{DIGEST}", f"docker.io/a/b:t@{DIGEST}", f"a/b:t@{DIGEST}"),
        ("UPPER/app", "UPPER/app", "UPPER/app"),  # a first part with a capital is a registry
    ],
)
def test_parses_to_normal_and_familiar_form(text: str, normal: str, familiar: str) -> None:
    reference = parse(text)
    assert (str(reference), reference.familiar) == (normal, familiar)


@pytest.mark.parametrize(
    "text",
    [
        "", "Busybox", "a//b", "-a", "a:", "a:tag with blank", "a:b:c", "a@sha256:12", "/a",
        "a/", "a@", f"a@{DIGEST.upper()}", "a:" + "t" * 129, "a" * 256, "0" * 64, "a___b",
        "a@md5:" + "0" * 32, "ho st/a", "-x.y/a",
    ],
)  # fmt: skip
def test_refuses_what_is_no_reference(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="invalid reference format"):
        parse(text)


def test_repository_parameter_takes_the_tag_from_either_place() -> None:
    assert from_repository("app").familiar == "app:latest"
    assert from_repository("app:1").familiar == "app:1"
    assert from_repository("host:5000/app", "2").familiar == "host:5000/app:2"
    with pytest.raises(errors.InvalidArgument, match="digest"):
        from_repository(f"app@{DIGEST}")


components = st.from_regex(r"[a-z0-9]{1,8}([._-][a-z0-9]{1,5}){0,2}", fullmatch=True)
tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
domains = st.sampled_from(["docker.io", "localhost", "quay.io", "reg.example:5000", "[::1]:80"])


@given(domains, st.lists(components, min_size=1, max_size=3), tags, st.booleans())
def test_normal_form_parses_to_itself(
    domain: str, parts: list[str], tag: str, with_digest: bool
) -> None:
    if domain == "docker.io" and len(parts) == 1:
        parts = ["library", *parts]
    reference = Reference(domain, "/".join(parts), tag, DIGEST if with_digest else "")
    assert parse(str(reference)) == reference


@given(domains, st.lists(components, min_size=2, max_size=3), tags)
def test_familiar_form_means_the_same(domain: str, parts: list[str], tag: str) -> None:
    reference = Reference(domain, "/".join(parts), tag)
    first = parts[0]
    if domain == "docker.io" and ("." in first or first == "localhost"):
        return  # such a namespace cannot be written without its registry, in Docker either
    assert parse(reference.familiar) == reference


@given(st.text(max_size=40))
def test_any_text_is_a_reference_or_an_invalid_argument(text: str) -> None:
    try:
        reference = parse(text)
    except errors.InvalidArgument:
        return
    assert parse(str(reference)) == reference
