import subprocess
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from layermesh.coordinator.chat import render_chat
from layermesh.coordinator.conversation import as_conversation, check_messages
from layermesh.shared.errors import LayermeshError, TokenizerError, UsageError

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": ' "Hi" & <b>ünï</b> 🙂\n'},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Bye"},
]

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = """
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- if message["role"] == "user" and loop.last and system_message is defined %}
        {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
    {%- elif message["role"] == "user" %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- else %}
        {% generation %}{{- " " + message["content"] + eos_token}}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""
ODDS_AND_ENDS = """
{%- set ns = namespace(last=none, count=0) -%}
{%- for m in messages -%}
    {%- if m.role == 'assistant' %}{% continue %}{% endif -%}
    {%- set ns.count = ns.count + 1 -%}
    {%- set ns.last = m -%}
{%- endfor -%}
{{ ns.count }} {{ ns.last | tojson(indent=2) }} {{ messages | tojson }} {{ dict(a=1) }} {{ dict.fromkeys('ab') }}
{{ strftime_now('%Y') }} {{ tools is none }} {{ documents }} {{ unknown is defined }}
{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}
    {{ twice(eos_token) }}
"""
TEMPLATES = {"chatml": CHATML, "llama-3": LLAMA_3, "mistral": MISTRAL, "odds-and-ends": ODDS_AND_ENDS}


def render(template: str, messages: list[dict[str, str]] = TALK) -> str:
    return render_chat(template, messages, SPECIAL, "toy")


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("messages", [TALK, TALK[1:]], ids=["system", "no-system"])
def test_renders_as_transformers_does(template: str, messages: list[dict[str, str]]) -> None:
    theirs, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **SPECIAL)
    assert render(template, messages) == theirs[0]


def test_time_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, east = "%d %H", timezone(timedelta(hours=12))
    before = datetime.now(east).strftime(pattern)
    monkeypatch.setenv("TZ", "XYZ-12")
    assert render(f"{{{{ strftime_now('{pattern}') }}}}") in (before, datetime.now(east).strftime(pattern))


def test_a_long_conversation_is_rendered() -> None:
    messages = [{"role": "user", "content": "word " * 400}] * 500
    assert render(CHATML, messages).count("<|im_end|>") == 500


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('Only user and assistant roles are supported!') }}",
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('Only user and assistant roles are supported.') }}"
            "{% endif %}"
        ),
    ],
    ids=["always", "system-role"],
)
def test_what_the_template_rejects_is_the_callers_error(template: str) -> None:
    expected = r"chat template of toy rejects .*: Only user and assistant roles are supported\. .*--raw"
    with pytest.raises(UsageError, match=expected):
        render(template)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages[0].nope.nope }}", "UndefinedError"),
        ("{% include 'x' %}", "TypeError: no loader"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("x" * 2**18 + "x", "262145 characters"),
    ],
    ids=["syntax", "undefined", "include", "division", "too-long"],
)
def test_a_template_that_does_not_work_is_the_models_error(template: str, why: str) -> None:
    with pytest.raises(TokenizerError, match=f"chat template of toy cannot be used: .*{why}.*--raw"):
        render(template)


ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr-filter": "{{ ''|attr('__class__')|attr('__mro__') }}",
    "globals": "{{ raise_exception.__globals__['json'] }}",
    "init": "{{ dict.__init__.__globals__ }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "cycler": "{{ cycler.__init__.__globals__.os.environ }}",
    "format": "{{ '{0.__class__.__base__}'.format('') }}",
    "format-map": "{{ '{a.__class__.__base__}'.format_map({'a': ''}) }}",
    "namespace": "{% set ns = namespace(__class__=1) %}",
    "namespace-item": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "self": "{{ self._TemplateReference__context.environment.loader.x }}",
    "mutation": "{{ messages.append(1) }}",
}


@pytest.mark.parametrize("template", ESCAPES.values(), ids=ESCAPES)
def test_no_way_out_of_the_sandbox(template: str) -> None:
    try:
        text = render(template)
    except TokenizerError:
        return
    assert text.strip() in ("", "None")  # an attribute that is not there


BOMBS = {
    "huge-range": ("{{ range(10**9)|list }}", "Range too big"),
    "nested-loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than 1 s"),
    "power": ("{{ 9 ** (9 ** 9) }}", "more than 1 s"),
    "string": ("{{ 'x' * 10**11 }}", "MB of memory"),
    "list": ("{{ [0] * 10**11 }}", "MB of memory"),
    "width": ("{{ '%9999999999d' % 1 }}", "MB of memory"),
    "join": ("{{ range(99999)|join('x' * 10**6) }}", "MB of memory"),
    "doubling": (
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "MB of memory|more than 1 s",  # whichever a busy machine comes to first
    ),
    "macro": ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}", "than 1 s"),
    "endless-macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "deep-nesting": ("{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}", "RecursionError"),
    "flood": ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "99980001 characters"),
}


@pytest.mark.parametrize(("template", "why"), BOMBS.values(), ids=BOMBS)
def test_no_bomb_takes_long_or_much(monkeypatch: pytest.MonkeyPatch, template: str, why: str) -> None:
    monkeypatch.setattr("layermesh.coordinator.chat._CPU_SECONDS", 1)
    started = time.monotonic()
    with pytest.raises(TokenizerError, match=f"cannot be used: .*({why})"):
        render(template)
    assert time.monotonic() - started < 30


def test_the_sandbox_is_told_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {}

    def run(*args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        given.update(kwargs["env"])
        return subprocess.CompletedProcess(args, 0, stdout='{"text": ""}')

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(subprocess, "run", run)
    render("")
    assert "PYTHONPATH" in given
    assert "hf_secret" not in given.values()


@pytest.mark.parametrize(
    "messages",
    [None, [], "hi", {"role": "user", "content": "x"}, ["hi"], [{"role": "user"}], [{"role": "user", "content": None}],
     [{"role": 1, "content": "x"}], [{"role": "user", "content": "x", "more": "y"}],
     [{"role": "user", "content": [{"type": "text", "text": "x"}]}]],
    ids=repr,
)  # fmt: skip
def test_what_is_no_conversation_is_refused(messages: Any) -> None:
    with pytest.raises(UsageError, match=r"role|message 0"):
        check_messages(messages)


def test_the_message_that_is_wrong_is_named_and_cut_short() -> None:
    with pytest.raises(UsageError, match="message 1") as caught:
        check_messages([TALK[0], "x" * 1000])
    assert len(str(caught.value)) < 200
    assert isinstance(caught.value, LayermeshError)


def test_a_prompt_becomes_a_conversation() -> None:
    user = {"role": "user", "content": "Hi"}
    assert as_conversation("Hi") == check_messages([user]) == [user]
    assert as_conversation("Hi", "Be brief.") == [TALK[0], user]
