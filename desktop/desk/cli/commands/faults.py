"""``desk network fault …``: partitions, bad links and bad names, and their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from desk.cli import complete, options, render
from desk.cli.catalog import Entry
from desk.cli.commands.details import inspect_all
from desk.cli.fault_texts import (
    effect_text,
    links_text,
    parse_milliseconds,
    parse_percent,
    parse_rate_bits,
    remaining_text,
)
from desk.cli.framework import DeskCommand, LazyGroup
from desk.cli.render import Table
from desk.cli.session import Session, for_each, pass_session
from desk.errors import UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])

_GROUP = {
    "block": Entry("faults:block", "Let nothing pass between containers, or in one direction."),
    "dns": Entry("faults:dns", "Let containers' questions for names fail or wait."),
    "heal": Entry("faults:heal", "End network faults."),
    "inspect": Entry("faults:inspect", "Show everything about network faults."),
    "link": Entry("faults:link", "Delay, lose, repeat, reorder or slow down what is sent."),
    "ls": Entry("faults:ls", "List network faults."),
    "partition": Entry("faults:partition", "Part containers into groups that cannot see others."),
}

_HEADINGS = {
    "Created": "CREATED",
    "Effect": "EFFECT",
    "HealsIn": "HEALS IN",
    "Kind": "KIND",
    "Links": "LINKS",
    "Name": "NAME",
    "Network": "NETWORK",
}
_SHORT_COLUMN = 22


@click.group(cls=LazyGroup, sections={"Commands": _GROUP})
def fault() -> None:
    """Make networks go wrong on purpose, and heal them."""


def _of_every_fault(command: _Command) -> _Command:
    for option in (
        click.option("--name", metavar="NAME", default="", help="Name of the fault."),
        click.option(
            "--for", "duration", metavar="DURATION", default="", help="Heal by itself after 30s."
        ),
        click.option(
            "--network",
            metavar="NETWORK",
            default="",
            shell_complete=complete.networks,
            help="Network (the one that the containers have in common).",
        ),
    ):
        command = option(command)
    return command


def _one_way(command: _Command) -> _Command:
    for name, text in (("--to", "Only what is sent to it."), ("--from", "Only what it sends.")):
        command = click.option(
            name,
            name.strip("-") + "_",
            metavar="CONTAINER",
            multiple=True,
            shell_complete=complete.containers,
            help=text,
        )(command)
    return command


_between = click.argument(
    "between", metavar="[CONTAINER...]", nargs=-1, shell_complete=complete.containers
)


def _create(session: Session, *, name: str, network: str, duration: str, **fields: Any) -> None:
    body = {
        "Name": name,
        "Network": network,
        "DurationMs": _duration_ms(duration),
        **{key: value for key, value in fields.items() if value},
    }
    render.out(session.client.faults.create(body)["Name"])


def _duration_ms(text: str) -> int:
    if not text:
        return 0
    duration_ms = round(parse_milliseconds(text, flag="--for"))
    if duration_ms <= 0:
        raise UsageError(f"invalid --for {text!r}", hint="Write how long, such as 30s or 5m.")
    return duration_ms


@click.command(
    cls=DeskCommand,
    example="desk network fault partition n1 n2,n3 --for 30s\ndesk network fault partition n1",
)
@_of_every_fault
@click.argument(
    "groups",
    metavar="GROUP...",
    nargs=-1,
    required=True,
    shell_complete=complete.containers,
)
@pass_session
def partition(
    session: Session, groups: tuple[str, ...], name: str, network: str, duration: str
) -> None:
    """Part containers into groups that cannot see others.

    A group is one container or several with commas between them. Containers in no group see all
    groups; a single group sees nobody else.
    """
    parted = [[item for item in group.split(",") if item] for group in groups]
    _create(session, name=name, network=network, duration=duration, Partition=parted)


@click.command(
    cls=DeskCommand,
    example="desk network fault block n1 n2\ndesk network fault block --from n1 --to n2",
)
@_of_every_fault
@_one_way
@_between
@pass_session
def block(
    session: Session,
    between: tuple[str, ...],
    from_: tuple[str, ...],
    to_: tuple[str, ...],
    name: str,
    network: str,
    duration: str,
) -> None:
    """Let nothing pass between containers, or in one direction.

    Without containers it concerns all of the network.
    """
    _create(
        session,
        name=name,
        network=network,
        duration=duration,
        Block=True,
        Between=list(between),
        From=list(from_),
        To=list(to_),
    )


@click.command(
    cls=DeskCommand,
    example=(
        "desk network fault link n1 n2 --latency 100ms --jitter 20ms --loss 5%\n"
        "desk network fault link --network back --rate 1mbit --for 5m"
    ),
)
@_of_every_fault
@_one_way
@click.option("--latency", metavar="DURATION", default="0", help="Delay each packet by that.")
@click.option("--jitter", metavar="DURATION", default="0", help="Vary the delay by up to that.")
@click.option("--loss", metavar="PERCENT", default="0", help="Lose as many of the packets.")
@click.option("--duplicate", metavar="PERCENT", default="0", help="Send as many twice.")
@click.option("--reorder", metavar="PERCENT", default="0", help="Let as many overtake others.")
@click.option("--rate", metavar="RATE", default="", help="Carry no more, such as 512kbit, 10mbit.")
@_between
@pass_session
def link(
    session: Session,
    between: tuple[str, ...],
    from_: tuple[str, ...],
    to_: tuple[str, ...],
    latency: str,
    jitter: str,
    loss: str,
    duplicate: str,
    reorder: str,
    rate: str,
    name: str,
    network: str,
    duration: str,
) -> None:
    """Delay, lose, repeat, reorder or slow down what is sent.

    It holds for each link between the containers, in both directions, unless --from or --to says
    which; without containers for all links of the network. Several faults of a link add up.
    """
    wanted = {
        "LatencyMs": parse_milliseconds(latency, flag="--latency"),
        "JitterMs": parse_milliseconds(jitter, flag="--jitter"),
        "LossPercent": parse_percent(loss, flag="--loss"),
        "DuplicatePercent": parse_percent(duplicate, flag="--duplicate"),
        "ReorderPercent": parse_percent(reorder, flag="--reorder"),
        "BandwidthBits": parse_rate_bits(rate) if rate else 0,
    }
    if not any(wanted.values()):
        raise UsageError(
            "a link fault needs something to go wrong",
            hint="Give --latency, --loss, --duplicate, --reorder or --rate.",
        )
    _create(
        session,
        name=name,
        network=network,
        duration=duration,
        Link={key: value for key, value in wanted.items() if value},
        Between=list(between),
        From=list(from_),
        To=list(to_),
    )


@click.command(
    cls=DeskCommand,
    example=(
        "desk network fault dns n1 --answer servfail --host db\n"
        "desk network fault dns --network back --answer slow --delay 3s"
    ),
)
@_of_every_fault
@click.option(
    "--answer",
    metavar="ANSWER",
    required=True,
    shell_complete=complete.one_of("none", "servfail", "nxdomain", "slow"),
    help="none, servfail, nxdomain, or slow: the right one, late.",
)
@click.option("--delay", metavar="DURATION", default="", help="How late with slow (2s).")
@click.option(
    "--host", "hosts", metavar="NAME", multiple=True, help="Only for db, or *.example (all)."
)
@_between
@pass_session
def dns(
    session: Session,
    between: tuple[str, ...],
    answer: str,
    delay: str,
    hosts: tuple[str, ...],
    name: str,
    network: str,
    duration: str,
) -> None:
    """Let containers' questions for names fail or wait.

    Without containers it concerns all of the network.
    """
    asked: dict[str, Any] = {"Answer": answer, "Names": list(hosts)}
    if delay:
        asked["DelayMs"] = parse_milliseconds(delay, flag="--delay")
    _create(session, name=name, network=network, duration=duration, Dns=asked, From=list(between))


def fault_row(item: Mapping[str, Any], *, truncate: bool) -> render.Row:
    """Return the columns of one fault."""

    def shortened(text: str) -> str:
        too_long = truncate and len(text) > _SHORT_COLUMN
        return f"{text[: _SHORT_COLUMN - 1]}…" if too_long else text

    return {
        "Created": item["Created"],
        "Effect": shortened(effect_text(item)),
        "HealsIn": remaining_text(item["RemainingMs"]),
        "Kind": item["Kind"],
        "Links": shortened(links_text(item)),
        "Name": item["Name"],
        "Network": item["Network"],
    }


@click.command(cls=DeskCommand, example="desk network fault ls")
@click.option(
    "--network",
    metavar="NETWORK",
    default="",
    shell_complete=complete.networks,
    help="Only those of this network.",
)
@options.table_format
@options.no_trunc
@options.quiet_names
@pass_session
def ls(session: Session, network: str, form: str, no_trunc: bool, quiet: bool) -> None:
    """List network faults."""
    found = session.client.faults.list(network=network)
    table = Table(
        _HEADINGS, default=("Name", "Network", "Links", "Effect", "HealsIn"), quiet="Name"
    )
    table.print((fault_row(item, truncate=not no_trunc) for item in found), form=form, quiet=quiet)


@click.command(cls=DeskCommand, example="desk network fault inspect partition1")
@options.detail_format
@click.argument(
    "names", metavar="FAULT...", nargs=-1, required=True, shell_complete=complete.faults
)
@pass_session
def inspect(session: Session, names: tuple[str, ...], form: str) -> None:
    """Show everything about network faults."""
    inspect_all(names, {"fault": session.client.faults.inspect}, form)


@click.command(
    cls=DeskCommand,
    example="desk network fault heal partition1\ndesk network fault heal --all",
)
@click.option("-a", "--all", "everything", is_flag=True, help="End all faults.")
@click.option(
    "--network",
    metavar="NETWORK",
    default="",
    shell_complete=complete.networks,
    help="End all faults of this network.",
)
@click.argument("names", metavar="[FAULT...]", nargs=-1, shell_complete=complete.faults)
@pass_session
def heal(session: Session, names: tuple[str, ...], network: str, everything: bool) -> None:
    """End network faults."""
    if bool(names) == (everything or bool(network)):
        raise UsageError(
            "either name the faults to heal, or which are meant",
            hint="Write `desk network fault heal --all`, or --network NETWORK.",
        )
    if names:
        for_each(names, session.client.faults.heal)
        return
    for name in session.client.faults.heal_all(network=network):
        render.out(name)
