"""Chat templates: rendered as transformers renders them, and never more than that."""

import json

import pytest

from llmlab.data import renderer
from llmlab.data.template import Template
from llmlab.errors import UserError

TALK = [
    {"role": "system", "content": "be <brief> & kind"},
    {"role": "user", "content": "  hello \n"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "é\u2028?"},
]
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "blocks": "{{- bos_token }}\n{%- for m in messages %}\n    {%- if m.role == 'user' %}\n[{{ m.content | trim }}]\n"
    "    {%- else %}\n  {% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}\n    {%- endif %}\n{%- endfor %}\n",
    "loops": "{% set ns = namespace(n=0) %}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{{ ns.n }}:{{ m | tojson }}{% if ns.n > 1 %}{% break %}{% endif %}{% endfor %}",
    "absent": "{% if tools is none and documents is not defined %}none{% endif %}{{ pad_token }}|{{ messages | length }}"
    "{{ strftime_now('%Y') }}{{ messages[-1]['content'].split('?')[0] }}{{ dict(a=1) | tojson(indent=2) }}",
    "macro": "{%- macro said(m) -%}{{ m.role | upper }} {{ m.content | replace('h', 'H') }}{%- endmacro -%}"
    "{% for m in messages[1:] if m.role != 'assistant' %}{{ said(m) }}{{ '' if loop.last else ';' }}{% endfor %}",
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", [True, False])
def test_as_transformers_renders(name, answer):
    from transformers.utils.chat_template_utils import render_jinja_template

    (wanted,), _ = render_jinja_template([TALK], chat_template=TEMPLATES[name], add_generation_prompt=answer, **TOKENS)
    assert Template(TEMPLATES[name], TOKENS).render(TALK, answer=answer) == wanted


def test_where_it_is_found():
    plain = {
        "tokenizer_config.json": json.dumps({"chat_template": "a{{ eos_token }}", "eos_token": {"content": "</s>"}})
    }
    assert Template.from_files(plain, "here").render(TALK) == "a</s>"
    assert Template.from_files({**plain, "chat_template.jinja": "b"}, "here").render(TALK) == "b"
    several = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    assert (
        Template.from_files({"tokenizer_config.json": json.dumps({"chat_template": several})}, "here").render(TALK)
        == "d"
    )
    for beside in ({}, {"tokenizer_config.json": "{}"}, {"tokenizer_config.json": '{"chat_template": []}'}):
        with pytest.raises(UserError, match="^here: its tokenizer has no chat template, so"):
            Template.from_files(beside, "here")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('no system role') }}", "says: no system role$"),
        ("{% for m in messages %}", "can't be read: line 1: Unexpected end of template"),
        ("{{ messages[0].content.missing.more }}", "says: .*has no attribute 'missing'"),
        ("{{ messages.append(1) }}", "says: access to attribute 'append' of 'list' object is unsafe"),
        ("{{ ''.__class__.__mro__ }}", "says: access to attribute '__class__'"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "says: access to attribute '__init__'"),
        ("{% set n = namespace(__class__=1) %}", "says: a namespace can't have __class__"),
        ("{% include '/etc/passwd' %}", "says: "),
    ],
)
def test_what_it_must_not_do_is_a_line(source, said):
    with pytest.raises(UserError, match=said):
        Template(source, {}).render(TALK)


@pytest.mark.parametrize(
    ("limit", "value", "source", "said"),
    [
        (
            "SECONDS",
            1.0,
            "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
            "longer than 1 s",
        ),
        ("LONGEST", 500, "{% for i in range(999) %}{{ 'word' }}{% endfor %}", r"more than [\d,]+ characters"),
        ("MEMORY", 1 << 28, "{{ 'word' * 99999999 }}", "needs more than 268,435,456 bytes"),
        (
            "MEMORY",
            1 << 28,
            "{{ ('word' * 99999999) | length * messages | length }}",
            "needs more than 268,435,456 bytes",
        ),
    ],
)
def test_what_takes_too_much_is_stopped(limit, value, source, said, monkeypatch):
    """And the next is rendered as if nothing had been."""
    with monkeypatch.context() as patch:
        patch.setattr(renderer, "MULTIPLE", 1)
        patch.setattr(renderer, limit, value)
        renderer.renderer.end()  # the limits are told to the process as it begins
        with pytest.raises(UserError, match=f"^here: its chat template .*{said}, and was stopped$"):
            Template(source, {}, "here").render(TALK)
    assert Template("{{ messages[0].content }}", {}).render(TALK) == TALK[0]["content"]
    renderer.renderer.end()


def test_one_process_serves_all_and_ends_with_the_session():
    first = Template("a{{ messages | length }}", {})
    process = renderer.renderer.process
    assert first.render(TALK * 5000) == "a20000" and Template("b", {}).render(TALK) == "b"
    assert renderer.renderer.process is process and process.poll() is None
    process.kill()
    process.wait()
    assert first.render(TALK) == "a4"
    renderer.renderer.end()
    assert renderer.renderer.process is None


@pytest.mark.parametrize("found", [3, ["x"], [{"template": "x"}], [{"name": "default"}], [{"name": 1}]])
def test_a_template_that_is_none(found):
    with pytest.raises(UserError, match=r"^here: tokenizer_config\.json: chat_template"):
        Template.from_files({"tokenizer_config.json": json.dumps({"chat_template": found})}, "here")
    assert not Template.among({"tokenizer_config.json": json.dumps({"chat_template": found})})


def test_half_a_character_is_none():
    with pytest.raises(UserError, match="half of a surrogate pair"):
        Template("{{ '\\ud83d' }}", {}).render(TALK)
