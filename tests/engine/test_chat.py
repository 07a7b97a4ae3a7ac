"""Chat templates render as transformers renders them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from engine.errors import TokenizerError
from engine.text.chat import ChatTemplate
from engine.text.tokenizer import Tokenizer
from tests.engine.tiny_tokenizers import byte_level_folder, sentencepiece_folder

CHATML_WITH_DEFAULT = """{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{% endif %}
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}"""

LLAMA2 = """{%- if messages[0]['role'] == 'system' -%}
  {%- set system = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' -%}
  {%- set turns = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Roles must alternate user/assistant') -}}
  {%- endif -%}
  {%- set content = (system if loop.index0 == 0 else '') + message['content'] | trim -%}
  {%- if message['role'] == 'user' -%}
    {{- bos_token + '[INST] ' + content + ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + content + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}"""

LLAMA3 = """{{- bos_token }}
{%- if tools is not none %}{{- tools | tojson(indent=4) }}{% endif %}
{%- if date_string is not defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "<|eot_id|>" }}
{%- for message in messages %}
  {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
  {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

MISTRAL = """{{ bos_token }}{% set ns = namespace(system='', count=0) %}
{%- for message in messages %}
  {%- if message.role == 'system' %}{% set ns.system = message.content + '\\n\\n' %}{% continue %}
  {%- elif message.role == 'user' %}
    {%- set ns.count = ns.count + 1 -%}
    [INST] {{ ns.system }}{{ message.content }} [/INST]{% set ns.system = '' %}
  {%- else %}
    {%- generation %} {{ message.content }}{{ eos_token }}{% endgeneration %}
  {%- endif %}
{%- endfor %}{{ {'turns': ns.count, 'é<': "ü"} | tojson }}"""

ZEPHYR = """{% for message in messages %}
    {% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
    {% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
    {% else %}
{{ '<|assistant|>\\n' + message.get('content', '') + eos_token }}
    {% endif %}
    {% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
    {% endif %}
{% endfor %}"""

TEMPLATES = {
    "chatml": CHATML_WITH_DEFAULT, "llama2": LLAMA2, "llama3": LLAMA3,
    "mistral": MISTRAL, "zephyr": ZEPHYR,
}  # fmt: skip
USER = {"role": "user", "content": "  Hi <s> <|im_end|> {{ 1 + 1 }}\n<b>&amp;</b>\n"}
ASSISTANT = {"role": "assistant", "content": "Héllo 👩‍👩‍👧", "tool_calls": None}
SYSTEM = {"role": "system", "content": "Be brief.\n\n"}
CHATS = [[USER], [SYSTEM, USER], [USER, ASSISTANT, USER], [SYSTEM, USER, ASSISTANT]]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_transformers(name: str, prompt: bool, tmp_path: Path) -> None:
    sentencepiece_folder(tmp_path)
    Tokenizer.from_folder(tmp_path).save(tmp_path)  # the peer reads tokenizer.json anywhere
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    ours, peer = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for chat in CHATS:
        assert ours.render_chat(chat, add_generation_prompt=prompt) == peer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=prompt
        )


def test_a_chat_that_renders_bos_is_encoded_with_one(tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(byte_level_folder(tmp_path, "llama3", chat_template=LLAMA3))
    text = ours.render_chat([USER])
    assert text.startswith("<|begin_of_text|>")
    assert ours.encode(text).count(ours.bos_id) == 1


def test_the_date_is_todays() -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }}", {}, "here")
    assert template.render([USER]) == str(datetime.now().year)


@pytest.mark.parametrize(
    ("source", "chat", "message"),
    [
        ("{% if %}", [USER], r"template.jinja: chat template: line 1: Expected an expression"),
        ("{{ raise_exception('No\nsystem role!') }}", [USER], "chat template: No system role!"),
        ("{{ missing.attribute }}", [USER], "'missing' is undefined"),
        ("{{ messages[0]['content'] + 1 }}", [USER], "chat template: can only concatenate str"),
        ("{{ ''.__class__.__mro__ }}", [USER], "access to attribute '__class__'"),
        ("{{ messages.append(1) }}", [USER], "access to attribute 'append' of 'list'"),
        ("{% include '/etc/hostname' %}", [USER], "no loader"),
        ("{{ 'a' * 10 }}", [], "no message to render"),
        ("{{ 1 }}", [{"content": "x"}], "a message needs a 'role'"),
        ("{{ 1 }}", ["hello"], "a message needs a 'role'"),
        ("{{ range(10000000) | list }}", [USER], "Range too big"),
    ],
)
def test_errors_take_one_line(source: str, chat: list[dict[str, str]], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        ChatTemplate(source, {}, "template.jinja").render(chat)
    assert str(caught.value).startswith("template.jinja: chat template: ")
    assert "\n" not in str(caught.value)
