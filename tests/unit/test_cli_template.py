"""Go templates as ``--format`` takes them; what is expected is what Go's text/template prints."""

from __future__ import annotations

from typing import Any

import pytest

from desk.cli.structures import structured
from desk.cli.template import RenderError, Template, TemplateError

DATA: dict[str, Any] = {
    "Name": "/web",
    "State": {"Pid": 12, "Running": True, "Error": ""},
    "Map": {"b": 1, "a": [1, "x"]},
    "Dotted": {"com.example.x": "y"},
    "Nothing": None,
    "List": ["a", "b", "c"],
    "Empty": [],
    "Float": 1.5,
    "Big": 1e21,
    "Nested": [{"N": 1}, {"N": 2}],
    "Label": lambda name: f"<{name}>",
}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("plain", "plain"),
        ("{{.Name}}\t{{.State.Pid}}", "/web\t12"),
        ("{{ .Name }}{{/* nothing */}}!", "/web!"),
        ("a {{- .Name -}} b", "a/webb"),
        ("{{- /* x */ -}} b", "b"),
        (
            "{{.Map}} {{.List}} {{.Nothing}} {{.State.Running}}",
            "map[a:[1 x] b:1] [a b c] <nil> true",
        ),
        ("{{.Float}} {{.Big}}", "1.5 1e+21"),
        ("{{json .Map}}", '{"b":1,"a":[1,"x"]}'),
        ("{{json .Nothing}}{{json .Name}}", 'null"/web"'),
        ("{{.State | json}}", '{"Pid":12,"Running":true,"Error":""}'),
        ('{{index .Dotted "com.example.x"}}', "y"),
        ('{{index .Dotted "none"}}|', "|"),
        ('{{(index .Map "a")}} {{index .List 1}}', "[1 x] b"),
        ("{{(index .Nested 1).N}}", "2"),
        ('{{join .List ", "}}', "a, b, c"),
        ('{{split .Name "/"}} {{len (split .Name "/")}}', "[ web] 2"),
        ("{{upper .Name}} {{.Name | lower}} {{title `hello world`}}", "/WEB /web Hello World"),
        ("{{truncate .Name 2}} {{pad .Name 1 2}}|", "/w  /web  |"),
        ("{{println 1 `a`}}|", "1 a\n|"),
        ('{{print "a" 1 2 "b"}}', "a1 2b"),
        ('{{printf "%05d|%-5s|%q|%v|%t%%" 3 "x" "y" .List true}}', '00003|x    |"y"|[a b c]|true%'),
        ("{{slice .Name 1}} {{slice .List 1 2}}", "web [b]"),
        ("{{len .List}} {{len .Name}}", "3 4"),
        ("{{range .List}}[{{.}}]{{end}}", "[a][b][c]"),
        ("{{range $i, $e := .List}}{{$i}}={{$e}};{{end}}", "0=a;1=b;2=c;"),
        ("{{range $k, $v := .Map}}{{$k}}={{$v}};{{end}}", "a=[1 x];b=1;"),
        ("{{range $x := .List}}{{$x}}{{$.Name}}{{end}}", "a/webb/webc/web"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{range 3}}{{.}}{{end}}", "012"),
        ("{{range .List}}{{if eq . `b`}}{{continue}}{{end}}{{.}}{{end}}", "ac"),
        ("{{range .List}}{{if eq . `b`}}{{break}}{{end}}{{.}}{{end}}", "a"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .State.Error}}a{{else if .Empty}}b{{else}}c{{end}}", "c"),
        ("{{if .State.Health}}h{{else}}none{{end}}", "none"),
        ("{{with .State}}{{.Pid}}{{end}}{{with .Empty}}x{{else}}y{{end}}", "12y"),
        ("{{$x := 1}}{{range .List}}{{$x = .}}{{end}}{{$x}}", "c"),
        ("{{if and .State.Running (eq .State.Pid 12 13)}}yes{{end}}", "yes"),
        ("{{or .Nothing `default`}} {{not .Nothing}} {{and 1 0}}", "default true 0"),
        ("{{if or (lt 1 2) .Nothing.x}}short{{end}}", "short"),
        ("{{ne 1 2}} {{gt 2 1}} {{le 2 2}} {{ge 1 2}}", "true true true false"),
        ('{{.Label "x"}}', "<x>"),
        (r'{{"a\tbé"}}', "a\tbé"),
        ("{{html `<a&'>`}} {{urlquery `a b`}}", "&lt;a&amp;&#39;&gt; a+b"),
    ],
)
def test_templates_render_as_in_go(source: str, text: str) -> None:
    assert Template(source).render(DATA) == text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{.Foo}}", 'map has no entry for key "Foo"'),
        ("{{.Foo.Bar}}", 'map has no entry for key "Foo"'),
        ("{{.Nothing.Bar}}", "nil has no field Bar"),
        ("{{.Name.Bar}}", "can't evaluate field Bar"),
        ("{{index .List 7}}", "out of range: 7"),
        ("{{eq .Name 1}}", "incompatible types"),
        ("{{upper 1}}", "upper cannot take these arguments"),
        ("{{$x}}", r"undefined variable \$x"),
        ("{{range .Name}}{{end}}", "can't iterate"),
    ],
)
def test_what_the_data_lack_is_named(source: str, message: str) -> None:
    with pytest.raises(RenderError, match=message) as caught:
        Template(source).render(DATA)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{.Name", "not closed"),
        ("{{end}}", r"unexpected \{\{end\}\}"),
        ("{{if .Name}}", r"has no \{\{end\}\}"),
        ("{{if}}{{end}}", "unexpected end of action"),
        ("{{foo}}", 'function "foo" is not defined'),
        ("{{template `x`}}", "not supported"),
        ("{{(.Name}}", "unexpected end of action"),
        ("{{.Name ?}}", "unexpected '[?]'"),
        ("{{if .Name}}{{else}}{{else}}{{end}}", r"unexpected \{\{else\}\}"),
    ],
)
def test_malformed_templates_are_refused(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message) as caught:
        Template(source)
    assert caught.value.exit_code == 64


CONTAINER = {
    "Id": "abc",
    "State": {"Status": "exited", "ExitCode": 3},
    "Mounts": [{"Type": "bind", "Source": "/src", "Destination": "/dst", "RW": True}],
    "Config": {"Labels": {"b": "2", "a": "1"}},
    "HostConfig": {
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
        "NanoCpus": 5,
        "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]},
    },
    "NetworkSettings": {},
    "Unknown": {"to": "this table"},
}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{.ID}} {{.Id}}", "abc abc"),
        ("{{.HostConfig.RestartPolicy}}", "{on-failure 3}"),
        ("{{.State}}", "{exited false false false false false 0 3    <nil>}"),
        ("{{.Mounts}}", "[{bind  /src /dst   true }]"),
        ("{{range .Mounts}}{{.Name}}:{{.Destination}}{{end}}", ":/dst"),
        ("{{if .State.Health}}checked{{else}}unchecked{{end}}", "unchecked"),
        ("{{.Config.Healthcheck}} {{.SizeRw}} {{.Config.Volumes}}", "<nil> <nil> map[]"),
        ("{{.Config.Labels}} {{json .Config.Labels}}", 'map[a:1 b:2] {"a":"1","b":"2"}'),
        ("{{.HostConfig.NanoCPUs}} {{.HostConfig.NanoCpus}} {{.HostConfig.Memory}}", "5 5 0"),
        ("{{.HostConfig.PortBindings}}", "map[80/tcp:[{ 8080}]]"),
        ("{{.NetworkSettings.IPAddress}}|{{len .NetworkSettings.Networks}}", "|0"),
        ("{{json .State}}", '{"Status":"exited","ExitCode":3}'),
        ("{{.Config.Volumes}} {{json .Config.Volumes}}", "map[] null"),
        ("{{len .Config.Shell}} {{json .Config.Shell}}", "0 null"),
        ("{{.Unknown.to}}", "this table"),
        ("{{with .NetworkSettings}}there{{end}}", "there"),
    ],
)
def test_a_known_objects_fields_are_there_though_the_engine_left_them_out(
    source: str, text: str
) -> None:
    assert Template(source).render(structured(CONTAINER, "Container")) == text


def test_a_field_that_no_container_has_is_still_named() -> None:
    with pytest.raises(RenderError, match='no entry for key "Foo"'):
        Template("{{.Foo}}").render(structured(CONTAINER, "Container"))
