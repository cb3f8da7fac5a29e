"""Chat templates by name, for model files that have none.

They write conversations as the models of a family were trained on them: system, user and assistant, without tools. A
system message that a family has no turn for begins the first user's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

_FIRST_SYSTEM = (
    "{% if messages and messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
)
"""Splits the conversation into ``system`` and other messages."""


@dataclass(frozen=True, slots=True)
class Family:
    """A way to write conversations."""

    template: str
    markers: frozenset[str] = frozenset()
    """Control tokens that only this family's vocabularies have; none if it writes turns as plain text."""
    not_with: frozenset[str] = frozenset()
    """Control tokens of those that have the markers too, but write conversations otherwise."""


def _turns(before: str, after: str, prompt: str) -> str:
    """A template with the same frame around each message; ``before`` may refer to its role."""
    return (
        f"{{% for message in messages %}}{{{{ {before} + message.content + {after} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {prompt} }}}}{{% endif %}}"
    )


def _family(template: str, *markers: str, not_with: Collection[str] = ()) -> Family:
    return Family(template, frozenset(markers), frozenset(not_with))


FAMILIES: dict[str, Family] = {
    "chatml": _family(
        _turns(r"'<|im_start|>' + message.role + '\n'", r"'<|im_end|>\n'", r"'<|im_start|>assistant\n'"),
        "<|im_start|>",
        "<|im_end|>",
        not_with=["<|im_sep|>"],
    ),
    "command-r": _family(
        "{{ bos_token }}"
        "{% set names = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} %}"
        + _turns(
            "'<|START_OF_TURN_TOKEN|><|' + names[message.role] + '_TOKEN|>'",
            "'<|END_OF_TURN_TOKEN|>'",
            "'<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'",
        ),
        "<|START_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
    ),
    "deepseek": _family(
        "{{ bos_token }}"
        + _FIRST_SYSTEM
        + "{{ system }}"
        + _turns(
            "('<｜User｜>' if message.role == 'user' else '<｜Assistant｜>')",
            "('' if message.role == 'user' else eos_token)",
            "'<｜Assistant｜>'",
        ),
        "<｜User｜>",
        "<｜Assistant｜>",
    ),
    "gemma": _family(
        "{{ bos_token }}"
        + _FIRST_SYSTEM
        + r"""{% for message in messages %}{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user')
        + '\n' + (system + '\n\n' if loop.first and system else '') + message.content | trim + '<end_of_turn>\n' }}"""
        r"{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        "<start_of_turn>",
        "<end_of_turn>",
    ),
    "gpt-oss": _family(
        _FIRST_SYSTEM + r"""{{ '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: ' + strftime_now('%Y-%m-%d') + '\n\nReasoning: ' + (reasoning_effort or 'medium') + '\n
# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>' }}"""
        r"{{ '<|start|>developer<|message|># Instructions\n\n' + system + '\n\n<|end|>' if system }}"
        + _turns(
            "'<|start|>' + message.role + ('<|channel|>final' if message.role == 'assistant' else '') + '<|message|>'",
            "'<|end|>'",
            "'<|start|>assistant'",
        ),
        "<|start|>",
        "<|channel|>",
        "<|message|>",
    ),
    "granite": _family(
        _turns(
            "'<|start_of_role|>' + message.role + '<|end_of_role|>'",
            r"'<|end_of_text|>\n'",
            "'<|start_of_role|>assistant<|end_of_role|>'",
        ),
        "<|start_of_role|>",
        "<|end_of_role|>",
    ),
    "llama2": _family(
        _FIRST_SYSTEM
        + r"""{% for message in messages %}{% if message.role == 'user' %}{{ bos_token + '[INST] '
        + ('<<SYS>>\n' + system + '\n<</SYS>>\n\n' if loop.first and system else '') + message.content | trim
        + ' [/INST]' }}{% else %}{{ ' ' + message.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"""
    ),
    "llama3": _family(
        "{{ bos_token }}"
        + _turns(
            r"'<|start_header_id|>' + message.role + '<|end_header_id|>\n\n'",
            "'<|eot_id|>'",
            r"'<|start_header_id|>assistant<|end_header_id|>\n\n'",
        ).replace("message.content", "message.content | trim"),
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ),
    "mistral": _family(
        "{{ bos_token }}"
        + _FIRST_SYSTEM
        + r"""{% for message in messages %}{% if message.role == 'user' %}{{ '[INST] '
        + (system + '\n\n' if loop.first and system else '') + message.content + '[/INST]' }}{% else %}{{ ' '
        + message.content + eos_token }}{% endif %}{% endfor %}""",
        "[INST]",
        "[/INST]",
        not_with=["[SYSTEM_PROMPT]", "[PREFIX]"],
    ),
    "phi3": _family(
        _turns(r"'<|' + message.role + '|>\n'", r"'<|end|>\n'", r"'<|assistant|>\n'"),
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
    ),
    "zephyr": _family(_turns(r"'<|' + message.role + '|>\n'", r"eos_token + '\n'", r"'<|assistant|>\n'")),
}


def detect(control: Collection[str]) -> str | None:
    """The family of a vocabulary with these control tokens, or None if there is not exactly one."""
    found = [
        name
        for name, family in FAMILIES.items()
        if family.markers and family.markers <= set(control) and not family.not_with & set(control)
    ]
    return found[0] if len(found) == 1 else None
