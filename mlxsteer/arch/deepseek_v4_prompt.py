# ruff: noqa: RUF001, RUF002
"""How DeepSeek-V4 is spoken to: its files bring no chat template, only a program that encodes.

    <bos>{system}<｜User｜>{text}<｜Assistant｜></think>{answer}<eos><｜User｜>...<｜Assistant｜><think>

The system message stands bare behind the start token. Messages of the user that follow each other
are one, a blank line between them. `<think>` opens the thinking of the answer that is asked for;
`</think>` in its place says that there is none, as in all earlier answers. Tools, reasoning effort
and what else the program knows are left out. This module is text alone.
"""

__all__ = ["TEMPLATE"]

# One line: a template's own line breaks would be part of the prompt.
TEMPLATE = (
    "{%- set thinks = enable_thinking is defined and enable_thinking -%}"
    "{%- set ns = namespace(last=-1, before='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}"
    "{%- endfor -%}"
    "{{- '<｜begin▁of▁sentence｜>' -}}"
    "{%- for message in messages -%}"
    "{%- set role, text = message['role'], message['content'] -%}"
    "{%- set tag = '<think>' if thinks and loop.index0 >= ns.last else '</think>' -%}"
    "{%- if role == 'system' -%}{{- text -}}"
    "{%- elif role == 'user' -%}{{- ('\\n\\n' if ns.before == 'user' else '<｜User｜>') + text -}}"
    "{%- if loop.last and add_generation_prompt -%}{{- '<｜Assistant｜>' + tag -}}{%- endif -%}"
    "{%- elif role == 'assistant' -%}"
    "{%- if ns.before == 'user' -%}{{- '<｜Assistant｜>' + tag -}}{%- endif -%}"
    "{%- if tag == '<think>' -%}{{- '</think>' -}}{%- endif -%}"
    "{{- text + '<｜end▁of▁sentence｜>' -}}"
    "{%- else -%}{{- raise_exception('no role ' + role) -}}"
    "{%- endif -%}"
    "{%- set ns.before = role -%}"
    "{%- endfor -%}"
)
