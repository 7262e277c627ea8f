"""Desk's commands on click: loaded when they run, Docker's flag habits, help with an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

from desk.cli.catalog import Entry
from desk.errors import DeskError

_ALIASES = {"list": "ls", "ps": "ls", "remove": "rm"}
_TRUE = ("true", "1", "t")
_FALSE = ("false", "0", "f")


class UnknownCommand(DeskError):
    """A command was mistyped."""


class SectionOption(click.Option):
    """An option that ``--help`` shows under a heading of its own."""

    def __init__(self, *arguments: Any, section: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.section = section


class DeskCommand(click.Command):
    """A command with an example in its help, and flags that also take ``=true`` and ``=false``.

    ``interspersed=False`` ends the flags at the first argument, as ``run`` and ``exec`` need.
    """

    def __init__(
        self, name: str | None, *, example: str = "", interspersed: bool = True, **options: Any
    ) -> None:
        settings = dict(options.pop("context_settings", None) or {})
        settings.setdefault("help_option_names", ["--help"])
        settings["allow_interspersed_args"] = interspersed
        super().__init__(name, context_settings=settings, **options)
        self.example = example
        self.interspersed = interspersed

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, self._spell_out_flags(ctx, args))
        except click.UsageError as error:
            # click's parser does not know which command it reads for.
            error.ctx = error.ctx or ctx
            raise

    def _spell_out_flags(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Turn ``--rm=true`` into ``--rm``, ``--sig-proxy=false`` into its negation and
        ``-m=1g`` into ``-m 1g``."""
        options = {
            name: option
            for option in self.get_params(ctx)
            if isinstance(option, click.Option)
            for name in (*option.opts, *option.secondary_opts)
        }
        result: list[str] = []
        position = 0
        while position < len(args):
            arg = args[position]
            if arg == "--" or (not self.interspersed and (arg == "-" or arg[:1] != "-")):
                break
            position += 1
            name, separator, value = arg.partition("=")
            option = options.get(name)
            if separator and option is not None and option.is_flag:
                result += _flag_spelling(option, name, value, ctx)
            elif separator and option is not None and len(name) == 2:
                result += (name, value)
            else:
                result.append(arg)
                if _wants_next(arg, options) and position < len(args):
                    result.append(args[position])
                    position += 1
        return result + args[position:]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        if "Options" in sections:  # what belongs to no other heading comes first
            sections = {"Options": sections.pop("Options"), **sections}
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self.example:
            with formatter.section("Example"):
                for line in self.example.splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def _flag_spelling(
    option: click.Option, name: str, value: str, ctx: click.Context
) -> Sequence[str]:
    if value.lower() in _TRUE:
        return (name,)
    if value.lower() in _FALSE:
        return option.secondary_opts[:1]
    raise click.BadParameter(f"{value!r} is neither true nor false.", ctx=ctx, param=option)


def _wants_next(arg: str, options: Mapping[str, click.Option]) -> bool:
    """Whether ``arg`` is an option whose value is the next argument."""
    if arg.startswith("--"):
        option = options.get(arg)
        return option is not None and not option.is_flag and "=" not in arg
    for position in range(1, len(arg)):
        option = options.get(f"-{arg[position]}")
        if option is not None and not option.is_flag:
            return position == len(arg) - 1
    return False


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def __init__(
        self, name: str | None, *, sections: Mapping[str, Mapping[str, Entry]], **options: Any
    ) -> None:
        settings = dict(options.pop("context_settings", None) or {})
        settings.setdefault("help_option_names", ["--help"])
        super().__init__(name, context_settings=settings, **options)
        self.sections = sections

    def entries(self) -> dict[str, Entry]:
        return {name: entry for part in self.sections.values() for name, entry in part.items()}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.entries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entries = self.entries()
        # Docker's groups know these names too; at the top they mean nothing.
        alias = _ALIASES.get(cmd_name, "") if ctx.parent is not None else ""
        entry = entries.get(cmd_name) or entries.get(alias)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command = getattr(import_module(f"desk.cli.commands.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and not name.startswith("-"):
            raise self._unknown(ctx, name)
        return super().resolve_command(ctx, args)

    def _unknown(self, ctx: click.Context, name: str) -> UnknownCommand:
        from difflib import get_close_matches

        path = ctx.command_path
        nearest = get_close_matches(name, self.entries(), 2, 0.5)
        hint = f"See `{path} --help`."
        if nearest:
            meant = " or ".join(f"`{path} {command}`" for command in nearest)
            hint = f"Did you mean {meant}? See `{path} --help` for all commands."
        return UnknownCommand(f"{name!r} is not a {path} command", hint=hint)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.entries()), default=0)
        for title, entries in self.sections.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(f"{name:<{width}}", entry.summary) for name, entry in sorted(entries.items())]
                    if title != "Common commands"
                    else [(f"{name:<{width}}", entry.summary) for name, entry in entries.items()]
                )
