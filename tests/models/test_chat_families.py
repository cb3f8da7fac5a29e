"""Templates by name, and which one a vocabulary tells of. tests/reference/check_chat_templates.py compares with
transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import wasmetal
from tests.models import tiny
from wasmetal import load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.models import FAMILIES, ChatTemplate
from wasmetal.models.lm.chat_families import detect

SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
# What the models' own templates make of TALK, where they take a system message: with it.
WRITTEN = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
    "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "command-r": "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
    "<|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hello<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Bye<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "deepseek": "<s>Be brief.<｜User｜>Hi<｜Assistant｜>Hello</s><｜User｜>Bye<｜Assistant｜>",
    "gemma": "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "granite": "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>Hi"
    "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>Hello<|end_of_text|>\n<|start_of_role|>user"
    "<|end_of_role|>Bye<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nHi[/INST] Hello</s>[INST] Bye[/INST]",
    "phi3": "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n<|user|>\nBye<|end|>\n"
    "<|assistant|>\n",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n<|user|>\nBye</s>\n"
    "<|assistant|>\n",
}


def template(name: str) -> ChatTemplate:
    return ChatTemplate(FAMILIES[name].template, bos="<s>", eos="</s>", trusted=True)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_family_writes_its_turns(name: str) -> None:
    assert template(name).render([SYSTEM, *TALK]) == WRITTEN[name]
    assert "Be brief." not in template(name).render(TALK)


def test_gpt_oss() -> None:
    written = template("gpt-oss").render([SYSTEM, *TALK], variables={"reasoning_effort": "low"})
    head, _, rest = written.partition("<|end|>")
    assert head.startswith(
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowl"
    )
    assert "\n\nReasoning: low\n\n# Valid channels: analysis, commentary, final. Channel must" in head
    assert rest == (
        "<|start|>developer<|message|># Instructions\n\nBe brief.\n\n<|end|><|start|>user<|message|>Hi<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello<|end|><|start|>user<|message|>Bye<|end|><|start|>assistant"
    )


@pytest.mark.parametrize(
    ("control", "name"),
    [
        (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "chatml"),
        (["<|im_start|>", "<|im_end|>", "<|im_sep|>"], None),  # Phi 4
        (["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"], "llama3"),
        (["<|start|>", "<|end|>", "<|channel|>", "<|message|>"], "gpt-oss"),
        (["<|user|>", "<|assistant|>", "<|end|>", "<|im_start|>", "<|im_end|>"], None),  # two families
        (["<|im_start|>"], None),
        ([], None),
    ],
)
def test_the_control_tokens_tell(control: list[str], name: str | None) -> None:
    assert detect(control) == name


def test_a_file_without_a_template(cpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguf.GGUFWriter.add_chat_template", lambda *_: None)
    path = tiny.write_tiny_llama(tmp_path / "tiny.gguf")
    with load_model(path, cpu) as model:
        assert model.chat_template is not None
        assert model.chat_template.render(TALK[:1]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    monkeypatch.setattr(tiny, "CONTROL", ("<|endoftext|>", "<|start|>", "<|im_end|>", "<|pad|>"))
    with load_model(tiny.write_tiny_llama(tmp_path / "other.gguf"), cpu) as model:
        assert model.chat_template is None


def test_a_family_in_place_of_the_files_own(cpu: Device, tmp_path: Path) -> None:
    path = tiny.write_tiny_llama(tmp_path / "tiny.gguf")
    with load_model(path, cpu, chat_template="zephyr") as model:
        assert model.chat_template is not None
        assert model.chat_template.render(TALK[:1]) == "<|user|>\nHi<|im_end|>\n<|assistant|>\n"
    with pytest.raises(ModelError, match=r"^there is no chat template 'klingon'; known: chatml, .*zephyr$"):
        load_model(path, cpu, chat_template="klingon")


def test_the_command(tmp_path: Path) -> None:
    path = tiny.write_tiny_llama(tmp_path / "tiny.gguf")
    chat = ["chat", path, "--device", "cpu", "--greedy", "--max-tokens", "2", "-p", "Hi", "--chat-template"]
    assert wasmetal(*chat, "zephyr").returncode == 0
    refused = wasmetal(*chat, "klingon")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "there is no chat template 'klingon'; known: chatml" in refused.stderr
