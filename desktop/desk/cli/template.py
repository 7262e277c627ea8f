"""Go templates for ``--format``, in the part of the language that Docker's users write.

Written after the description of Go's ``text/template``: actions, pipelines, variables, ``if``,
``range``, ``with``, ``break``, ``continue``, comments, trim markers, the comparison and printing
functions, and the ones that Docker adds (``json``, ``join``, ``split``, ``upper``, ``lower``,
``title``, ``pad``, ``truncate``). ``define``, ``block`` and ``template`` are refused by name.

Data are JSON values. A dictionary value that is callable takes the arguments that follow it, as
Docker's ``.Label "name"`` does. A missing key is false in a condition and an error when printed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from desk.cli.structures import Structure
from desk.cli.template_functions import FUNCTIONS, MISSING, Missing, TemplateFailure, text_of, truth
from desk.errors import UsageError

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)
    | (?P<char>'(?:\\.|[^'\\\n])')
    | (?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+|\d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d+)?))
    | (?P<variable>\$\w*)
    | (?P<field>\.\w+)
    | (?P<name>\w+)
    | (?P<sign>:=|[.()|,=])
    )""",
    re.VERBOSE,
)


class TemplateError(UsageError):
    """The template cannot be read."""

    exit_code = 64  # as Docker answers


class RenderError(TemplateError):
    """The template asks for what the data do not have."""

    exit_code = 1


class _Token(NamedTuple):
    kind: str
    text: str
    spaced: bool  # whitespace stands before it


# --- the tree -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Operand:
    """A value with the fields taken from it: ``.A.B``, ``$x.A``, ``(…).A``, ``"text"``, ``f``."""

    kind: str  # "dot", "variable", "constant", "function", "pipeline"
    value: Any = None
    fields: tuple[str, ...] = ()


@dataclass(slots=True)
class _Pipeline:
    commands: list[list[_Operand]]
    variables: tuple[str, ...] = ()
    declares: bool = False


@dataclass(slots=True)
class _Node:
    """``text``, ``output``, ``if``, ``range``, ``with``, ``break`` or ``continue``."""

    kind: str
    text: str = ""
    pipeline: _Pipeline | None = None
    body: list[_Node] = field(default_factory=list)
    otherwise: list[_Node] = field(default_factory=list)


# --- reading ------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, source: str) -> None:
        self._pieces = list(self._split(source))
        self._at = 0

    @staticmethod
    def _split(source: str) -> Iterator[tuple[str, str]]:
        position, trim = 0, False
        for match in _ACTION.finditer(source):
            text = source[position : match.start()]
            if trim:
                text = text.lstrip()
            content = match[2]
            opening = match[1] is not None
            if content.startswith("-") and content[1:2] in ("", "\n", "\t"):
                opening, content = True, content[1:]
            if opening:
                text = text.rstrip()
            yield "text", text
            if not re.fullmatch(r"\s*/\*.*\*/\s*", content, re.DOTALL):
                yield "action", content
            trim = match[3] is not None
            position = match.end()
        rest = source[position:]
        if "{{" in rest:
            raise TemplateError(f"invalid --format: an action is not closed: {rest.strip()!r}")
        yield "text", rest.lstrip() if trim else rest

    def read(self) -> list[_Node]:
        nodes, end = self._nodes()
        if end is not None:
            raise TemplateError(f"invalid --format: unexpected {{{{{end}}}}}")
        return nodes

    def _nodes(self, *, inside: str = "") -> tuple[list[_Node], str | None]:
        nodes: list[_Node] = []
        while self._at < len(self._pieces):
            kind, text = self._pieces[self._at]
            self._at += 1
            if kind == "text":
                if text:
                    nodes.append(_Node("text", text=text))
                continue
            words = text.split(None, 1)
            word = words[0] if words else ""
            rest = words[1] if len(words) > 1 else ""
            if word in ("end", "else"):
                if not inside:
                    raise TemplateError(f"invalid --format: unexpected {{{{{word}}}}}")
                return nodes, text.strip()
            nodes.append(self._node(word, rest, text))
        if inside:
            raise TemplateError(f"invalid --format: {{{{{inside}}}}} has no {{{{end}}}}")
        return nodes, None

    def _node(self, word: str, rest: str, text: str) -> _Node:
        if word in ("if", "range", "with"):
            return self._block(word, rest)
        if word in ("break", "continue"):
            return _Node(word)
        if word in ("define", "template", "block"):
            raise TemplateError(f"invalid --format: {{{{{word}}}}} is not supported here")
        return _Node("output", text=text.strip(), pipeline=_parse_pipeline(text))

    def _block(self, word: str, rest: str) -> _Node:
        node = _Node(word, text=rest.strip(), pipeline=_parse_pipeline(rest))
        node.body, end = self._nodes(inside=word)
        if end is not None and end != "end":
            chained = end.removeprefix("else").strip()
            if chained:
                inner, _, rest = chained.partition(" ")
                if inner != word or word == "range":
                    raise TemplateError(f"invalid --format: unexpected {{{{{end}}}}}")
                node.otherwise = [self._block(word, rest)]
            else:
                node.otherwise, end = self._nodes(inside=word)
                if end != "end":
                    raise TemplateError(f"invalid --format: unexpected {{{{{end}}}}}")
        return node


class _Tokens:
    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self._items: list[_Token] = []
        position = 0
        stripped = text.rstrip()
        while position < len(stripped):
            match = _TOKEN.match(stripped, position)
            if not match or match.lastgroup is None:
                raise TemplateError(
                    f"invalid --format: unexpected {stripped[position:].strip()[:1]!r}"
                    f" in {{{{{self.text}}}}}"
                )
            token = match[match.lastgroup]
            spaced = match.start(match.lastgroup) > position or position == 0
            self._items.append(_Token(match.lastgroup, token, spaced))
            position = match.end()
        self._at = 0

    def peek(self, ahead: int = 0) -> _Token:
        index = self._at + ahead
        return self._items[index] if index < len(self._items) else _Token("end", "", True)

    def take(self) -> _Token:
        token = self.peek()
        self._at += 1
        return token

    def fail(self, token: _Token) -> TemplateError:
        what = "end of action" if token.kind == "end" else repr(token.text)
        return TemplateError(f"invalid --format: unexpected {what} in {{{{{self.text}}}}}")


def _parse_pipeline(text: str) -> _Pipeline:
    tokens = _Tokens(text)
    pipeline = _pipeline(tokens)
    if tokens.peek().kind != "end":
        raise tokens.fail(tokens.peek())
    return pipeline


def _pipeline(tokens: _Tokens) -> _Pipeline:
    variables: tuple[str, ...] = ()
    declares = False
    if tokens.peek().kind == "variable":
        second = tokens.peek(1)
        if second.text in (":=", "="):
            variables = (tokens.take().text,)
            declares = tokens.take().text == ":="
        elif second.text == "," and tokens.peek(3).text in (":=", "="):
            first = tokens.take().text
            tokens.take()
            variables = (first, tokens.take().text)
            declares = tokens.take().text == ":="
    commands = [_command(tokens)]
    while tokens.peek().text == "|":
        tokens.take()
        commands.append(_command(tokens))
    return _Pipeline(commands, variables, declares)


def _command(tokens: _Tokens) -> list[_Operand]:
    operands = [_operand(tokens)]
    while tokens.peek().kind != "end" and tokens.peek().text not in ("|", ")"):
        operands.append(_operand(tokens))
    return operands


def _operand(tokens: _Tokens) -> _Operand:
    token = tokens.take()
    if token.kind == "sign" and token.text == "(":
        operand = _Operand("pipeline", _pipeline(tokens))
        if tokens.peek().text != ")":
            raise tokens.fail(tokens.peek())
        tokens.take()
    elif token.kind == "field":
        operand = _Operand("dot", fields=(token.text[1:],))
    elif token.text == ".":
        operand = _Operand("dot")
    elif token.kind == "variable":
        operand = _Operand("variable", token.text)
    elif token.kind in ("string", "char", "number"):
        operand = _Operand("constant", _constant(token))
    elif token.kind == "name" and token.text in ("true", "false", "nil"):
        operand = _Operand("constant", {"true": True, "false": False, "nil": None}[token.text])
    elif token.kind == "name":
        if token.text not in FUNCTIONS and token.text not in ("and", "or"):
            raise TemplateError(f'invalid --format: function "{token.text}" is not defined')
        return _Operand("function", token.text)
    else:
        raise tokens.fail(token)
    fields = list(operand.fields)
    while tokens.peek().kind == "field" and not tokens.peek().spaced:
        fields.append(tokens.take().text[1:])
    operand.fields = tuple(fields)
    return operand


def _constant(token: _Token) -> Any:
    text = token.text
    if token.kind == "number":
        try:
            return int(text.replace("_", ""), 0)
        except ValueError:
            return float(text.replace("_", ""))
    if text.startswith("`"):
        return text[1:-1]
    value = _unescape(text[1:-1])
    return ord(value) if token.kind == "char" else value


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def _unescape(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] in "xuU" and len(code) > 1:
            return chr(int(code[1:], 16))
        return _ESCAPES.get(code, code)

    return re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", replace, text)


# --- execution ----------------------------------------------------------------------------------


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class _Scope:
    """Variables by name; an inner scope sees and may assign the outer ones."""

    def __init__(self, outer: _Scope | None = None, **values: Any) -> None:
        self._outer = outer
        self.values: dict[str, Any] = values

    def find(self, name: str) -> dict[str, Any]:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values
            scope = scope._outer
        raise TemplateFailure(f"undefined variable {name}")


class Template:
    """A parsed template; ``render`` may be called many times. Both raise ``TemplateError``."""

    def __init__(self, source: str) -> None:
        self._nodes = _Reader(source).read()

    def render(self, data: Any) -> str:
        scope = _Scope()
        scope.values["$"] = data
        parts: list[str] = []
        try:
            self._execute(self._nodes, data, scope, parts)
        except (_Break, _Continue):
            raise TemplateError("invalid --format: break or continue outside of range") from None
        return "".join(parts)

    def _execute(self, nodes: list[_Node], dot: Any, scope: _Scope, parts: list[str]) -> None:
        for node in nodes:
            if node.kind == "text":
                parts.append(node.text)
            elif node.kind == "break":
                raise _Break
            elif node.kind == "continue":
                raise _Continue
            else:
                try:
                    self._execute_action(node, dot, scope, parts)
                except TemplateFailure as error:
                    raise RenderError(
                        f"cannot render --format at {{{{{node.text}}}}}: {error}"
                    ) from error

    def _execute_action(self, node: _Node, dot: Any, scope: _Scope, parts: list[str]) -> None:
        assert node.pipeline is not None
        if node.kind == "range":
            self._range(node, dot, scope, parts)
            return
        inner = scope if node.kind == "output" else _Scope(scope)
        value = self._value(node.pipeline, dot, inner)
        if node.kind == "output":
            if not node.pipeline.variables:
                parts.append(text_of(value))
            return
        chosen = node.body if truth(value) else node.otherwise
        new_dot = value if node.kind == "with" and chosen is node.body else dot
        self._execute(chosen, new_dot, _Scope(inner), parts)

    def _range(self, node: _Node, dot: Any, scope: _Scope, parts: list[str]) -> None:
        assert node.pipeline is not None
        plain = _Pipeline(node.pipeline.commands)
        items = list(_items(self._value(plain, dot, scope)))
        if not items:
            self._execute(node.otherwise, dot, _Scope(scope), parts)
            return
        names = node.pipeline.variables
        for key, value in items:
            inner = _Scope(scope)
            if names:
                values = (value,) if len(names) == 1 else (key, value)
                for name, item in zip(names, values, strict=True):
                    target = inner.values if node.pipeline.declares else scope.find(name)
                    target[name] = item
            try:
                self._execute(node.body, value, inner, parts)
            except _Continue:
                continue
            except _Break:
                break

    def _value(self, pipeline: _Pipeline, dot: Any, scope: _Scope) -> Any:
        value: Any = None
        for position, command in enumerate(pipeline.commands):
            piped = () if position == 0 else (value,)
            value = self._command(command, piped, dot, scope)
        for name in pipeline.variables:
            (scope.values if pipeline.declares else scope.find(name))[name] = value
        return value

    def _command(
        self, operands: list[_Operand], piped: tuple[Any, ...], dot: Any, scope: _Scope
    ) -> Any:
        head, *rest = operands
        if head.kind == "function" and head.value in ("and", "or"):
            return self._logic(head.value, rest, piped, dot, scope)
        arguments = (*(self._operand(each, dot, scope) for each in rest), *piped)
        if head.kind == "function":
            function: Callable[..., Any] = FUNCTIONS[head.value]
            return _call(head.value, function, arguments)
        value = self._operand(head, dot, scope, call=False)
        if callable(value):
            return _call(head.fields[-1] if head.fields else "value", value, arguments)
        if arguments:
            raise TemplateFailure("a value that is no function was given arguments")
        return value

    def _logic(
        self, name: str, rest: list[_Operand], piped: tuple[Any, ...], dot: Any, scope: _Scope
    ) -> Any:
        value: Any = None
        for item in rest:
            value = self._operand(item, dot, scope)
            if truth(value) == (name == "or"):
                return value
        return piped[0] if piped else value

    def _operand(self, operand: _Operand, dot: Any, scope: _Scope, *, call: bool = True) -> Any:
        if operand.kind == "constant":
            value = operand.value
        elif operand.kind == "variable":
            value = scope.find(operand.value)[operand.value]
        elif operand.kind == "pipeline":
            value = self._value(operand.value, dot, _Scope(scope))
        elif operand.kind == "function":
            return _call(operand.value, FUNCTIONS[operand.value], ())
        else:
            value = dot
        for name in operand.fields:
            value = _field(value, name)
        return value() if call and callable(value) else value


def _call(name: str, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    try:
        return function(*arguments)
    except TemplateFailure:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise TemplateFailure(f"{name} cannot take these arguments") from error


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Missing):
        raise TemplateFailure(f'map has no entry for key "{value.name}"')
    if value is None:
        raise TemplateFailure(f"nil has no field {name}")
    if isinstance(value, Structure):
        found = value.field(name, MISSING)
        return Missing(name) if found is MISSING else found
    if not isinstance(value, Mapping):
        raise TemplateFailure(f"can't evaluate field {name} in {text_of(value)[:40]!r}")
    found = value.get(name, MISSING)
    return Missing(name) if found is MISSING else found


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from ((key, value[key]) for key in sorted(value))
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield from ((number, number) for number in range(value))
    elif value is not None and not isinstance(value, Missing):
        raise TemplateFailure(f"range can't iterate over {text_of(value)[:40]}")
