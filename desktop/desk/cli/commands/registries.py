"""Commands that talk to registries: pull, push, login, logout, search."""

from __future__ import annotations

import sys
from typing import Any

import click

from desk.cli import complete, options, render
from desk.cli.container_spec import check_trust
from desk.cli.filters import parse_filters
from desk.cli.framework import DeskCommand
from desk.cli.layer_lines import show_layers
from desk.cli.render import Table
from desk.cli.session import Session, pass_session
from desk.cli.starting import full_name, pull_image, split_reference
from desk.engine.logins import HUB_KEY, Login, Logins, encode_header, server_key, server_of
from desk.errors import DeskError, EngineError, UsageError

SEARCH_HEADINGS = {
    "Name": "NAME",
    "Description": "DESCRIPTION",
    "StarCount": "STARS",
    "IsOfficial": "OFFICIAL",
    "IsAutomated": "AUTOMATED",
}
_DESCRIPTION_WIDTH = 45

_trust = click.option(
    "--disable-content-trust/--no-disable-content-trust", "unsigned", default=True, hidden=True
)


@click.command(cls=DeskCommand, example="desk pull debian:trixie\ndesk pull -a registry:5000/mine")
@click.option("-a", "--all-tags", is_flag=True, help="Fetch every tag of the repository.")
@_trust
@click.option("--platform", metavar="PLATFORM", help="Platform, such as linux/amd64.")
@click.option("-q", "--quiet", is_flag=True, help="Print the image's name only.")
@click.argument("image", metavar="IMAGE[:TAG|@DIGEST]")
@pass_session
def pull(
    session: Session,
    image: str,
    platform: str | None,
    quiet: bool,
    all_tags: bool,
    unsigned: bool,
) -> None:
    """Fetch an image from a registry."""
    check_trust(unsigned=unsigned)
    name, tag = split_reference(image)
    is_bare = name == image
    if all_tags and not is_bare:
        raise UsageError("tag can't be used with --all-tags/-a", hint="Leave one of the two out.")
    if is_bare and not all_tags and not quiet:
        render.out(f"Using default tag: {tag}")
    pull_image(
        session.starting_client,
        image,
        platform=platform,
        quiet=quiet,
        all_tags=all_tags,
        stream=sys.stdout,
    )
    render.out(full_name(image, with_tag=not all_tags))


@click.command(cls=DeskCommand, example="desk push registry.example:5000/mine:1")
@click.option("-a", "--all-tags", is_flag=True, help="Send every tag of the repository.")
@_trust
@click.option("-q", "--quiet", is_flag=True, help="Print the image's name only.")
@click.argument("image", metavar="IMAGE[:TAG]", shell_complete=complete.images)
@pass_session
def push(session: Session, image: str, all_tags: bool, quiet: bool, unsigned: bool) -> None:
    """Send an image to a registry."""
    check_trust(unsigned=unsigned)
    name, tag = split_reference(image)
    if "@" in image:
        raise UsageError(f"cannot push {image}: a digest is no name to push to", hint="Name a tag.")
    if all_tags and name != image:
        raise UsageError("tag can't be used with --all-tags/-a", hint="Leave one of the two out.")
    if name == image and not all_tags and not quiet:
        render.out(f"Using default tag: {tag}")
    server = server_of(image)
    messages = session.client.images.push(
        name,
        tag=None if all_tags else tag,
        headers=encode_header(Logins().find(server), server),
    )
    if quiet:
        for _ in messages:
            pass
        render.out(full_name(image, with_tag=not all_tags))
        return
    show_layers(messages)


@click.command(cls=DeskCommand, example="desk login registry.example:5000")
@click.option("-u", "--username", metavar="NAME", default="", help="User name.")
@click.option("-p", "--password", metavar="TEXT", default="", help="Password or token.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.argument("server", metavar="[SERVER]", default="")
@pass_session
def login(
    session: Session, server: str, username: str, password: str, password_stdin: bool
) -> None:
    """Log in to a registry."""
    if password_stdin and password:
        raise UsageError("--password and --password-stdin are mutually exclusive")
    if password_stdin and not username:
        raise UsageError("Must provide --username with --password-stdin", hint="Add -u NAME.")
    if password:
        render.warn("Using --password via the CLI is insecure. Use --password-stdin.")
    if password_stdin:
        password = sys.stdin.read().rstrip("\r\n")
    logins, key = Logins(), server_key(server)
    known = logins.find(key, strict=True)
    client = session.starting_client
    if known and not username and not password:
        render.note("Authenticating with existing credentials...")
        try:
            _log_in(client, logins, key, known)
            return
        except EngineError as error:
            if not sys.stdin.isatty():
                raise
            render.error(error)
    _log_in(client, logins, key, _asked(key, username or known.username, password, username))


def _asked(key: str, known: str, password: str, username: str) -> Login:
    """Ask on the terminal for what the flags did not say."""
    if (not username or not password) and not sys.stdin.isatty():
        raise DeskError(
            "cannot perform an interactive login from a non TTY device",
            hint="Use -u NAME and --password-stdin.",
        )
    if not username:
        where = "Docker Hub" if key == HUB_KEY else key
        render.note(f"Log in to {where}.")
        username = str(click.prompt("Username", default=known or None, err=True))
    if not password:
        password = str(click.prompt("Password", hide_input=True, err=True))
    return Login(username.strip(), password)


def _log_in(client: Any, logins: Logins, key: str, login_: Login) -> None:
    answer = client.system.log_in(login_.as_api(key))
    token = str(answer.get("IdentityToken") or "")
    kept = Login(login_.username, "" if token else login_.password, token)
    if logins.keep(key, kept):
        render.warn(
            f"Your credentials are stored unencrypted in '{logins.path}'; a credential helper "
            "(credsStore in that file) avoids that."
        )
    render.out(str(answer.get("Status") or "Login Succeeded"))


@click.command(cls=DeskCommand, example="desk logout registry.example:5000")
@click.argument("server", metavar="[SERVER]", default="")
def logout(server: str) -> None:
    """Log out from a registry."""
    key = server_key(server)
    if Logins().forget(key):
        render.out(f"Removing login credentials for {key}")
    else:
        render.out(f"Not logged in to {key}")


@click.command(cls=DeskCommand, example="desk search nginx")
@options.filters("Show those that match, such as is-official=true or stars=10.")
@options.table_format
@click.option("--limit", metavar="NUMBER", type=int, default=0, help="How many at most.")
@options.no_trunc
@click.argument("term")
@pass_session
def search(
    session: Session, term: str, filters: tuple[str, ...], form: str, limit: int, no_trunc: bool
) -> None:
    """Search a registry for images."""
    server = server_of(term)
    found = session.starting_client.images.search(
        term,
        limit=limit or None,
        filters=parse_filters(filters),
        headers=encode_header(Logins().find(server), server),
    )
    rows = [_search_row(item, truncate=not no_trunc) for item in found]
    shown = ["Name", "Description", "StarCount", "IsOfficial"]
    Table(SEARCH_HEADINGS, default=shown, quiet="Name").print(rows, form=form, quiet=False)


def _search_row(item: dict[str, Any], *, truncate: bool) -> dict[str, Any]:
    from desk.cli.container_rows import shortened

    description = " ".join(str(item.get("description") or "").split())
    return {
        "Name": item.get("name") or "",
        "Description": shortened(description, _DESCRIPTION_WIDTH) if truncate else description,
        "StarCount": str(item.get("star_count") or 0),
        "IsOfficial": "[OK]" if item.get("is_official") else "",
        "IsAutomated": "[OK]" if item.get("is_automated") else "",
    }
