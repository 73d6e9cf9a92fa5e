"""Chat templates: the text of transformers, one date, and no way out of the sandbox."""

import datetime
from pathlib import Path

import pytest

from selfreward_lite.models.chat_template import (
    OPTIONS,
    ChatTemplate,
    Message,
    read_template,
    user,
)
from selfreward_lite.system.errors import ConfigError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
PLACE = Path("model")
ASKED = [*user("a <b> 'c' \"d\" é\n"), Message(role="assistant", content=" e "), *user("f")]
SYSTEM = [Message(role="system", content="be brief"), *ASKED]

TEMPLATES = {
    "beginning inside": (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    ),
    "no beginning": "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}",
    "blocks on lines": (
        "{% for m in messages %}\n    {% if m.role == 'user' %}\n  Q: {{ m.content }}\n"
        "    {% else %}\nA: {{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    ),
    "generation": (
        "{% set end = '|' %}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{% set end = '!' %}{{ loop.index }}{{ m.content }}{{ end }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ end }}{% endfor %}"
    ),
    "break": (
        "{% for m in messages %}{% if loop.index == 3 %}{% break %}{% endif %}{{ m.content }}"
        "{% endfor %}"
    ),
    "continue": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ m.content }}{% endfor %}"
    ),
    "json": (
        "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}"
        "{{ messages[0] | tojson(true) }}"
        "{{ {'b': 1, 'a': ['é']} | tojson(sort_keys=true, separators=(',', ':')) }}"
    ),
    "date": "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d') }} {{ date_string }}",
    "default system turn": (
        "{% if messages[0].role != 'system' %}<system>help{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    ),
    "no tools": "{% if tools %}tools{% endif %}{% if documents is none %}none{% endif %}",
    "thinking": "{% if enable_thinking is false %}<think>{% endif %}",
    "undefined": "[{{ sep_token }}{{ messages[0].reasoning }}{{ messages[0].x is defined }}]",
    "namespace": (
        "{% set n = namespace(c=0) %}{% for m in messages[::-1] %}{% set n.c = n.c + 1 %}"
        "{% endfor %}{{ n.c }}{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('y') }}"
    ),
}


def render(source: object, messages: list[Message] = ASKED, ask: bool = True) -> str:
    return ChatTemplate.parse(source, TOKENS, PLACE).render(messages, ask=ask)


@pytest.mark.parametrize("ask", [True, False])
@pytest.mark.parametrize("messages", [ASKED, SYSTEM], ids=["plain", "system"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_render_gives_the_text_of_transformers(name, messages, ask):
    from transformers.utils.chat_template_utils import render_jinja_template

    (expected,), _ = render_jinja_template(
        [messages],
        chat_template=TEMPLATES[name],
        add_generation_prompt=ask,
        **TOKENS,
        **OPTIONS,
    )
    assert render(TEMPLATES[name], messages, ask) == expected


def test_render_writes_one_date_on_all_days(monkeypatch):
    class LaterDay(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 2, 3, tzinfo=tz)

    expected = "26 Jul 2024 2024-07-26 26 Jul 2024"
    assert render(TEMPLATES["date"]) == expected
    monkeypatch.setattr(datetime, "datetime", LaterDay)
    assert render(TEMPLATES["date"]) == expected


def test_parse_takes_the_default_of_a_list():
    entries = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "plain {{ messages[0].role }}"},
    ]
    assert render(entries) == "plain user"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "model has no chat template; use an instruct"),
        ({"default": "x"}, "model has no chat template; use an instruct"),
        (
            [{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}],
            "chat templates named rag, tool_use, and none named default; write the one to use to "
            "chat_template.jinja",
        ),
        ([], "chat templates named nothing, and none named default"),
        (["text"], "chat templates named nothing, and none named default"),
        ([{"name": "default"}], "model has no chat template; use an instruct"),
        ("{% if %}", "chat template cannot be read .*; download it again"),
        ("\n\n{{ messages | no_filter }}\n", "chat template cannot be read .*no_filter"),
        ("{% generation %}x", "chat template cannot be read .*endgeneration"),
        ("{" * 40 + "% for", "chat template cannot be read"),
    ],
)
def test_parse_refuses_what_is_no_template(source, words):
    with pytest.raises(ConfigError, match=words) as caught:
        ChatTemplate.parse(source, TOKENS, PLACE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('roles must\n alternate') }}", r"\(roles must alternate\)"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages['x'].y }}", "no attribute"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% include 'other.jinja' %}", "loader"),
        ("{{ 5 | dictsort }}", "items"),
        ("{{ none() }}", "not callable"),
    ],
)
def test_render_names_roles_and_cause(source, words):
    with pytest.raises(ConfigError, match=words) as caught:
        render(source, SYSTEM)
    text = str(caught.value)
    assert "refuses a conversation of system, user, assistant, user (" in text
    assert text.endswith("leave a role out, or use another model")
    assert "\n" not in text


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'].x }}",
        "{{ ('' | attr('__class__')).x }}",
        "{{ strftime_now.__self__.x }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ '{0.__class__.x}'.format(1) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{{ open('/etc/passwd') }}",
        "{{ self.__init__.__globals__ }}",
    ],
)
def test_no_template_reaches_attributes_or_files(source):
    messages = user("text")
    with pytest.raises(ConfigError, match="refuses a conversation"):
        render(source, messages)
    assert messages == user("text")


def test_read_template_prefers_the_file(tmp_path):
    settings = {"chat_template": "settings"}
    assert read_template(tmp_path, settings) == "settings"
    assert read_template(tmp_path, {}) is None
    (tmp_path / "chat_template.jinja").write_text("file é", encoding="utf-8")
    assert read_template(tmp_path, settings) == "file é"


def test_read_template_names_a_file_that_is_no_text(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"chat_template\.jinja cannot be read .*download"):
        read_template(tmp_path, {})
