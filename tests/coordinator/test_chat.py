import subprocess
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from layermesh.coordinator.chat import render_chat
from layermesh.coordinator.conversation import ChatOptions, as_conversation, check_messages
from layermesh.shared.errors import LayermeshError, TokenizerError, UsageError
from tests.coordinator.tiny_tokenizers import byte_level_bpe, wrap

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
     [{"role": "user", "content": 5}], [{"role": "user", "content": "x", "name": 5}],
     [{"role": "user", "content": ["x"]}], [{"role": "user", "content": [{"type": "text"}]}],
     [{"role": "user", "content": [{"text": "x"}]}], [{"role": "user", "content": [{"type": "poem", "text": "x"}]}],
     [{"role": "user", "content": "x", "tool_calls": {1, 2}}], [{"role": "user", "content": "x", "documents": [float("nan")]}]],
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


QWEN = """
{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n<tools>' }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {{- '<|im_start|>assistant\n' }}
        {%- if message.reasoning_content is string %}{{- '<think>' + message.reasoning_content + '</think>' }}{%- endif %}
        {{- content.split('</think>')[-1] }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\n<tool_call>{"name": "' ~ call.name ~ '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\n<tool_response ' ~ (message.tool_call_id or '') ~ '>' }}
        {{- content + '</tool_response><|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role ~ (' ' ~ message.name if message.name else '') + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
"""
PARTS = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content | trim }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %}"
    "{% endfor %}"
    "{% for d in documents or [] %}[{{ d.title }}: {{ d.text }}]{% endfor %}{{ date or 'today' }}{{ add_generation_prompt }}"
)
ONLY_PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}"
)
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": [1, 2.5, None]}}}
RICH = {
    "a name": [{"role": "user", "name": "bob", "content": "hi"}],
    "a tool": [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "wet"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "wet is rain"},
        {"role": "user", "content": "Thanks", "name": None},
    ],
    "arguments as text": [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
    ],
    "reasoning by another name": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "reasoning": "z"}],
}
PARTED = [
    {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "world", "cache": {"a": 1}}]}
]
OPTIONS = {
    "none": {},
    "variables": {"variables": {"enable_thinking": False, "date": "1 May", "bos_token": "<x>"}},
    "tools and documents": {
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string"}}}}],
        "documents": [{"title": "A", "text": "B"}],
    },
    "no prompt": {"variables": {"add_generation_prompt": False}},
}


def theirs(template: str, messages: list[dict[str, Any]], tmp_tokenizer: Any, options: ChatOptions) -> str:
    asked = {"add_generation_prompt": True, **options.variables}
    return tmp_tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, tools=options.tools, documents=options.documents, **asked
    )


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return wrap(byte_level_bpe())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    ("template", "messages"),
    [*((QWEN, messages) for messages in RICH.values()), (PARTS, PARTED), (PARTS, TALK), (ONLY_PARTS, PARTED)],
    ids=[*RICH, "parts", "texts where parts are known", "only parts"],
)
def test_whatever_a_conversation_has_is_rendered_as_by_transformers(
    tokenizer: Any, template: str, messages: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    asked = ChatOptions(**options)
    ours = render_chat(template, check_messages(messages), tokenizer.special_tokens_map, "toy", asked)
    assert ours == theirs(template, messages, tokenizer, asked)


@pytest.mark.parametrize("template", [CHATML, LLAMA_3, MISTRAL, QWEN], ids=["chatml", "llama-3", "mistral", "qwen"])
def test_a_template_that_knows_texts_only_is_given_texts(template: str) -> None:
    flat = [{"role": "user", "content": "Hello \nworld"}]
    assert render(template, PARTED) == render(template, flat)


EDITING = {
    "cut": "{% if m.content is string %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content[0].text }}{% endif %}",
    "replaced": "{{ m.content.replace('Bye', '') }}",
    "upper": "{{ m.content | upper }}",
    "a role left out": "{% if m.role != 'system' %}{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}"
    "{% endif %}{% endif %}",
}


@pytest.mark.parametrize("edit", EDITING.values(), ids=EDITING)
def test_a_template_that_edits_texts_is_given_texts(tokenizer: Any, edit: str) -> None:
    template = "{% for m in messages %}<{{ m.role }}>" + edit + "{% endfor %}"
    messages = [*TALK, {"role": "user", "content": "What is </think> for?"}]
    assert render(template, messages) == theirs(template, messages, tokenizer, ChatOptions())


def test_a_template_that_knows_parts_only_is_given_parts() -> None:
    assert render(ONLY_PARTS, [TALK[0], TALK[3]]) == "<system>Be brief.<user>Bye"


def test_thoughts_that_a_template_leaves_out_stay_out() -> None:
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>hm</think>b"},
        {"role": "user", "content": "c"},
    ]
    assert "hm" not in render(QWEN, talk)


@pytest.mark.parametrize(
    ("given", "unread"),
    [
        ({"variables": {"enable_thinking": False}}, []),
        ({"variables": {"enable_thinkin": False}}, ["enable_thinkin"]),
        ({"documents": [{"text": "x"}], "tools": []}, ["documents"]),
    ],
    ids=["read", "misspelt", "documents"],
)
def test_what_a_template_does_not_read_is_named(given: dict[str, Any], unread: list[str]) -> None:
    said: list[str] = []
    render_chat(QWEN, TALK, SPECIAL, "toy", ChatOptions(**given), said.append)
    assert [
        name for name in ("enable_thinking", "enable_thinkin", "documents", "tools") if f" {name}:" in "".join(said)
    ] == unread


@pytest.mark.parametrize(
    "options",
    [{"variables": {"messages": []}}, {"variables": {"continue_final_message": True}}, {"variables": {"a": {1}}},
     {"variables": ["a"]}, {"tools": {"a": 1}}, {"tools": ["a"]}, {"documents": [{"a": float("inf")}]}, {"template": ""}],
    ids=str,
)  # fmt: skip
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"chat_template|tools|documents"):
        ChatOptions(**options)


@pytest.mark.parametrize("kind", ["image_url", "image", "input_audio", "video", "file"])
def test_a_part_that_is_no_text_is_refused_by_its_type(kind: str) -> None:
    with pytest.raises(UsageError, match=f"message 1 has a part of type '{kind}'"):
        check_messages([TALK[0], {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind, kind: "y"}]}])
