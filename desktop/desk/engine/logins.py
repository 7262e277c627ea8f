"""Logins to registries, kept where Docker's clients keep them: in ``config.json`` or with its
credential helpers, so that who logged in with one client is logged in with all of them.

The format is that of Docker's ``config.json`` (``auths``, ``credsStore``, ``credHelpers``); helpers
are programs ``docker-credential-NAME`` that speak JSON on their standard streams.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from desk.errors import DeskError
from desk.whole_file import replace_file

HUB_KEY = "https://index.docker.io/v1/"
_HUB_HOSTS = ("", "docker.io", "index.docker.io", "registry-1.docker.io")
_TOKEN_USER = "<token>"
_HELPER_TIMEOUT_S = 120.0
_NOT_FOUND = "credentials not found in native keychain"


class LoginError(DeskError):
    """Logins cannot be read or kept."""


class Login(NamedTuple):
    """Who somebody is at a registry: a password, or a token that was given for it."""

    username: str = ""
    password: str = ""
    identity_token: str = ""

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token)

    def as_api(self, server: str) -> dict[str, str]:
        """Return the Engine API's ``AuthConfig``."""
        found = {
            "username": self.username,
            "password": self.password,
            "identitytoken": self.identity_token,
            "serveraddress": server,
        }
        return {name: value for name, value in found.items() if value}


def server_key(server: str) -> str:
    """Return the name under which a registry's login is kept: its host, and Docker Hub's URL."""
    host = _host(server)
    return HUB_KEY if host in _HUB_HOSTS else host


def server_of(image: str) -> str:
    """Return the name under which the login for an image's registry is kept."""
    first, slash, _ = image.partition("/")
    is_host = slash and (
        "." in first or ":" in first or first == "localhost" or first != first.lower()
    )
    return server_key(first if is_host else "")


def _host(server: str) -> str:
    return (
        server.partition("://")[2].partition("/")[0]
        if "://" in server
        else (server.partition("/")[0])
    )


def encode_header(login: Login, server: str) -> dict[str, str]:
    """Return the header with which the engine passes a login on; empty without a login."""
    if not login:
        return {}
    document = json.dumps(login.as_api(server)).encode()
    return {"X-Registry-Auth": base64.urlsafe_b64encode(document).decode()}


class Logins:
    """The logins of this user."""

    def __init__(self, directory: Path | None = None) -> None:
        chosen = os.environ.get("DOCKER_CONFIG", "")
        self._path = (directory or (Path(chosen) if chosen else Path.home() / ".docker")) / (
            "config.json"
        )

    @property
    def path(self) -> Path:
        return self._path

    # --- looking --------------------------------------------------------------------------------

    def find(self, server: str, *, strict: bool = False) -> Login:
        """Return the login of a registry, empty where there is none.

        Only ``strict`` makes a broken file or helper an error: what needs no login works without.
        """
        try:
            return self._find(server)
        except LoginError:
            if strict:
                raise
            return Login()

    def _find(self, server: str) -> Login:
        document = self._read()
        helper = _helper(document, server)
        if helper:
            return _ask_helper(helper, server)
        auths = _mapping(document.get("auths"))
        entry = auths.get(server)
        if entry is None:
            wanted = _host(server)
            entry = next((auths[key] for key in auths if _host(key) == wanted), None)
        return _decode(_mapping(entry))

    # --- changing -------------------------------------------------------------------------------

    def keep(self, server: str, login: Login) -> bool:
        """Keep a login; return whether it lies in the file, where others may read it."""
        document = self._read()
        auths = dict(_mapping(document.get("auths")))
        helper = _helper(document, server)
        if helper:
            secret = login.identity_token or login.password
            user = _TOKEN_USER if login.identity_token else login.username
            message = {"ServerURL": server, "Username": user, "Secret": secret}
            _run_helper(helper, "store", json.dumps(message))
            auths[server] = {}
        else:
            pair = f"{login.username}:{'' if login.identity_token else login.password}"
            auths[server] = {"auth": base64.b64encode(pair.encode()).decode()}
            if login.identity_token:
                auths[server]["identitytoken"] = login.identity_token
        self._write({**document, "auths": auths})
        return not helper

    def forget(self, server: str) -> bool:
        """Remove a login; return whether there was one."""
        document = self._read()
        auths = dict(_mapping(document.get("auths")))
        known = [key for key in auths if key == server or _host(key) == _host(server)]
        helper = _helper(document, server)
        found = bool(known)
        if helper:
            found = bool(_ask_helper(helper, server)) or found
            if found:
                _run_helper(helper, "erase", server)
        for key in known:
            del auths[key]
        if known:
            self._write({**document, "auths": auths})
        return found

    # --- the file -------------------------------------------------------------------------------

    def _read(self) -> dict[str, Any]:
        try:
            document = json.loads(self._path.read_bytes() or b"{}")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise LoginError(
                f"the logins in {self._path} cannot be read ({error})",
                hint="Correct the file, or move it away and log in again.",
            ) from error
        if not isinstance(document, dict):
            raise LoginError(
                f"the logins in {self._path} cannot be read (it holds no JSON object)",
                hint="Correct the file, or move it away and log in again.",
            )
        return document

    def _write(self, document: Mapping[str, Any]) -> None:
        # A link to a file elsewhere stays a link.
        target = self._path.resolve()
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(target, json.dumps(document, indent="\t").encode())
        except OSError as error:
            raise LoginError(
                f"the login cannot be kept in {self._path} ({error.strerror})",
                hint="Check the directory's owner and the free space.",
            ) from error


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _decode(entry: Mapping[str, Any]) -> Login:
    username, password = str(entry.get("username", "")), str(entry.get("password", ""))
    if entry.get("auth"):
        try:
            pair = base64.b64decode(str(entry["auth"]), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise LoginError(
                "a login is damaged: its auth is no base64", hint="Log in again."
            ) from error
        username, _, password = pair.partition(":")
    return Login(username, password.rstrip("\0"), str(entry.get("identitytoken", "")))


# --- helpers ------------------------------------------------------------------------------------


def _helper(document: Mapping[str, Any], server: str) -> str:
    helpers = _mapping(document.get("credHelpers"))
    return str(helpers.get(server) or helpers.get(_host(server)) or document.get("credsStore", ""))


def _ask_helper(helper: str, server: str) -> Login:
    try:
        answer = json.loads(_run_helper(helper, "get", server))
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except _NoSuchLogin:
        return Login()
    except (ValueError, KeyError, TypeError) as error:
        raise LoginError(f"docker-credential-{helper} answered no login ({error})") from error
    return Login("", "", secret) if username == _TOKEN_USER else Login(username, secret)


class _NoSuchLogin(LoginError):
    """The helper knows no login for this registry."""


def _run_helper(helper: str, action: str, text: str) -> str:
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, action],
            input=text,
            capture_output=True,
            encoding="utf-8",
            timeout=_HELPER_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise LoginError(
            f"the credential helper {program} is not installed",
            hint="Install it, or take credsStore and credHelpers out of Docker's config.json.",
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LoginError(f"the credential helper {program} cannot be used ({error})") from error
    if done.returncode == 0:
        return done.stdout
    said = (done.stdout.strip() or done.stderr.strip())[:300]
    if _NOT_FOUND in said:
        raise _NoSuchLogin(said)
    raise LoginError(f"the credential helper {program} failed: {said}")
