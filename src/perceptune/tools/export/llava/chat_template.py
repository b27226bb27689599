"""The run's prompt as a chat template: what `processor.apply_chat_template` makes of a message with an image."""

import json
from typing import Any

from perceptune.models.text_format import TextFormat

# For each message: `images` before its text, and the `body`, in which texts stand in lines of their own and further
# images before the text that follows them. Servers look for the inner loop to see that the content may be a list.
_GATHER = """\
{%- for message in messages -%}
{%- set found = namespace(images='', body='', waiting='', begun=false, inside=false) -%}
{%- if message['content'] is string -%}
{%- set found.body = message['content'] -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}
{%- if found.begun -%}
{%- if found.waiting -%}{%- set found.inside = true -%}{%- endif -%}
{%- set found.body = found.body + '\\n' + found.waiting + part['text'] -%}
{%- else -%}
{%- set found.images = found.waiting -%}
{%- set found.body = part['text'] -%}
{%- endif -%}
{%- set found.begun = true -%}
{%- set found.waiting = '' -%}
{%- elif part['type'] == 'image' -%}
{%- set found.waiting = found.waiting + '<image>' -%}
{%- else -%}
{{- raise_exception('a part of type ' + part['type'] + ': this model takes text and image') -}}
{%- endif -%}
{%- endfor -%}
{%- if not found.begun -%}
{%- set found.images = found.waiting -%}
{%- elif found.waiting -%}
{%- set found.inside = true -%}
{%- set found.body = found.body + found.waiting -%}
{%- endif -%}
{%- endif -%}
"""
_SINGLE = """\
{%- if messages | length != 1 or messages[0]['role'] != 'user' -%}
{{- raise_exception('this model takes a single question, in one message of the user') -}}
{%- endif -%}
"""
# Images in front of the text stand in front of the whole prompt, as those of samples without marks do.
_ASKED = """\
{%- if found.images and not found.inside -%}
{{- start + found.images + before + found.body + after -}}
{%- else -%}
{{- start_of_text + before + found.images + found.body + after -}}
{%- endif -%}
{%- endfor -%}"""
_REWRITTEN = """\
{%- set written.messages = written.messages + [{'role': message['role'], 'content': found.images + found.body}] -%}
{%- endfor -%}
{%- set messages = written.messages -%}
"""


def chat_template_of(text: TextFormat) -> str:
    """Return the template, in Jinja; a run's own takes a single question, that of a chat conversations, too."""
    if text.chat is not None:
        return _of_chat(text.config.system) + _GATHER + _REWRITTEN + _own_template(text.tokenizer.chat_template)
    before, *after = text.config.template.split("{prompt}")
    start = "".join(text.tokenizer.convert_ids_to_tokens(text.bos))
    # A template that begins with the start token gets no second one in front of it.
    texts = {
        "start": start, "start_of_text": "" if before.startswith(start) else start, "before": before,
        "after": "".join(after) + (text.config.separator or ""),
    }  # fmt: skip
    settings = "".join(f"{{%- set {name} = {_quoted(value)} -%}}\n" for name, value in texts.items())
    return settings + _SINGLE + _GATHER + _ASKED


def _of_chat(system: str | None) -> str:
    """Return the start of a chat's template: the messages to come, after the run's system message if there is one."""
    if system is None:
        return "{%- set written = namespace(messages=[]) -%}\n"
    return (
        f"{{%- set written = namespace(messages=[{{'role': 'system', 'content': {_quoted(system)}}}]) -%}}\n"
        "{%- if messages[0]['role'] == 'system' -%}{%- set written.messages = [] -%}{%- endif -%}\n"
    )


def _quoted(text: str) -> str:
    """Return a text as a string of Jinja, which reads escapes as Python does."""
    return json.dumps(text, ensure_ascii=False)


def _own_template(template: Any) -> str:
    """Return the tokenizer's template; of several the default one."""
    return str(template["default"] if isinstance(template, dict) else template)
