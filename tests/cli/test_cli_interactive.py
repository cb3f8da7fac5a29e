"""``wasmetal chat`` at a terminal: commands, editing, history, Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from tests.cli.command import wasmetal
from tests.cli.pseudoterminal import CTRL_C, CTRL_D, PROMPT, UP, Terminal, plain
from tests.guests.scripted import ScriptedModel
from tests.models.tiny import write_tiny_llama
from wasmetal.cli.interactive import HELP, answer, converse, describe
from wasmetal.cli.prompt import prompt_reader
from wasmetal.cli.terminal import Wrapped
from wasmetal.conversation import Conversation, Stats

STATS = (
    r"context (\d+) of (\d+) tokens, prompts (\d+) tokens at [\d.]+ tokens/s, answers (\d+) tokens at [\d.]+ tokens/s"
)

Chat = Callable[..., str]


@pytest.fixture
def chat(capsys: pytest.CaptureFixture[str]) -> Chat:
    """Type lines in a conversation with a scripted model; returns what is shown, errors last."""

    def run(model: ScriptedModel, *lines: str, width: int = 1000) -> str:
        errors: list[bytes] = []
        typed = iter(lines)

        def read() -> str:
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        out = Wrapped(lambda text: print(text, end=""), lambda: width)
        with Conversation(model, stdout=out, stderr=errors.append) as conversation:
            assert conversation.open() == 0
            converse(conversation, out, read)
        return capsys.readouterr().out + b"".join(errors).decode()

    return run


# ---- Commands


def test_messages_are_answered_and_the_end_tells_the_speed(chat: Chat) -> None:
    shown = chat(ScriptedModel(b"Good day.", b"Indeed"), "hello", "", "  fine  ")
    assert re.fullmatch(rf"Good day\.\nIndeed\n{STATS}\n", shown)


def test_answers_are_wrapped_and_harmless(chat: Chat) -> None:
    shown = chat(ScriptedModel(b"The quick \x1b[31mbrown fox jumps"), "hello", width=12)
    assert shown.startswith("The quick\n␛[31mbrown\nfox jumps\n")
    assert "\x1b" not in shown


def test_stats(chat: Chat) -> None:
    shown = chat(ScriptedModel(b"abcd", context=100), "x", "/stats", "/bye")
    during, after = re.findall(STATS, shown)
    assert during == after == (str(len("^u:x|a:abcd")), "100", str(len("^u:x|a:")), "4")


def test_nothing_said_ends_without_a_word(chat: Chat) -> None:
    assert chat(ScriptedModel()) == ""


def test_stats_without_seconds() -> None:
    assert describe(Stats(0, 8, 0, 0, 0, 0)) == "context 0 of 8 tokens, prompts 0 tokens, answers 0 tokens"
    assert describe(Stats(5, 8, 4, 2, 3, 0.5)) == (
        "context 5 of 8 tokens, prompts 4 tokens at 2.0 tokens/s, answers 3 tokens at 6.0 tokens/s"
    )


def test_help_names_every_command(chat: Chat) -> None:
    assert chat(ScriptedModel(), "/help") == HELP + "\n"
    for name in ("/system", "/reset", "/save", "/load", "/stats", "/help", "/bye"):
        assert name in HELP
        assert "is not a command" not in chat(ScriptedModel(), name)


def test_bye_leaves(chat: Chat) -> None:
    model = ScriptedModel(b"never")
    assert chat(model, "/bye", "hello") == ""
    assert model.forwards == []


@pytest.mark.parametrize("line", ["/what", "/", "/obey", "/more", "/__init__ x"])
def test_unknown_commands_are_said_to_be_so(chat: Chat, line: str) -> None:
    model = ScriptedModel()
    assert chat(model, line) == f"{line.partition(' ')[0]} is not a command; /help lists the commands\n"
    assert model.conversations == []


def test_a_space_before_a_slash_makes_it_a_message(chat: Chat) -> None:
    model = ScriptedModel(b"yes")
    chat(model, " /etc is a folder?")
    assert model.conversations == [[{"role": "user", "content": "/etc is a folder?"}]]


def test_system_and_reset(chat: Chat) -> None:
    model = ScriptedModel(b"a", b"b", b"c")
    shown = chat(model, "/system Be  kind.", "one", "/reset", "two", "/system", "/reset", "three")
    assert shown.startswith(
        "system message set\na\nconversation forgotten\nb\nno system message\nconversation forgotten\nc\n"
    )
    system = {"role": "system", "content": "Be  kind."}
    one, two, three = ({"role": "user", "content": text} for text in ("one", "two", "three"))
    assert model.conversations == [[system, one], [system, two], [three]]


def test_save_and_load(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "my talk.json"
    chat(ScriptedModel("grüße 🚀".encode()), "/system s", "hello", f"/save {path}")
    messages = json.loads(path.read_text())
    assert [tuple(each.values()) for each in messages] == [
        ("system", "s"),
        ("user", "hello"),
        ("assistant", "grüße 🚀"),
    ]
    assert "grüße 🚀" in path.read_text()  # readable
    model = ScriptedModel(b"on", b"and on")
    shown = chat(model, "what was before", f"/load {path}", "next")
    assert f"3 messages loaded from {path}\n" in shown
    assert model.conversations[-1] == [*messages, {"role": "user", "content": "next"}]


def test_files_that_cannot_be_used_leave_the_conversation(chat: Chat, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_bytes(b"\xff[{}]")
    model = ScriptedModel(b"a", b"b")
    lines = (
        f"/load {tmp_path}/none",
        f"/load {wrong}",
        f"/load {tmp_path}",
        f"/save {tmp_path}/no/such",
        "/save",
        "/load",
    )
    shown = chat(model, "one", *lines, "two")
    assert shown.splitlines()[1:-2] == [
        f"{tmp_path}/none: No such file or directory",
        f"{wrong}: not a conversation: the text is not JSON",
        f"{tmp_path}: Is a directory",
        f"{tmp_path}/no/such: No such file or directory",
        "name a file",
        "name a file",
    ]
    assert [each["content"] for each in model.conversations[-1]] == ["one", "a", "two"]


# ---- Ctrl-C


class Interrupted:
    """A conversation whose user presses Ctrl-C ``presses`` times as the answer begins."""

    def __init__(self, presses: int) -> None:
        self.presses = presses
        self.calls: list[str] = []

    def ask(self, text: str) -> bool:
        for _ in range(self.presses):
            signal.raise_signal(signal.SIGINT)
        return True

    def go_on(self) -> bool:
        self.calls.append("go on")
        return len(self.calls) < 2

    def end(self) -> None:
        self.calls.append("end")


@pytest.mark.parametrize(("presses", "calls"), [(0, ["go on", "go on"]), (1, ["end"])])
def test_the_first_ctrl_c_ends_the_answer(presses: int, calls: list[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    conversation: Any = Interrupted(presses)
    answer(conversation, "hello")
    assert conversation.calls == calls
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_ctrl_c_leaves() -> None:
    before = signal.getsignal(signal.SIGINT)
    conversation: Any = Interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        answer(conversation, "hello")
    assert signal.getsignal(signal.SIGINT) is before


# ---- Editing


def lines_read(keys: str, count: int, history: Path) -> list[str]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        read = prompt_reader(history)
        return [read() for _ in range(count)]


def test_keys(tmp_path: Path) -> None:
    keys = "one\rfirst\x1b\rsecond\rwrong\x03right\r"
    assert lines_read(keys, 3, tmp_path / "history") == ["one", "first\nsecond", "right"]


def test_ctrl_d_ends_and_does_not_while_something_is_typed(tmp_path: Path) -> None:
    assert lines_read("ab\x04c\r", 1, tmp_path / "history") == ["abc"]
    with pytest.raises(EOFError):
        lines_read("\x04", 1, tmp_path / "history")


def test_history_is_kept_and_private(tmp_path: Path) -> None:
    history = tmp_path / "new folder" / "history"
    lines_read("one\rtwo\x1b\rlines\r", 2, history)
    kept = [line for line in history.read_text().splitlines() if line.startswith("+")]
    assert kept == ["+one", "+two", "+lines"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert lines_read("\x1b[A\x1b[A\x1b[A\r", 1, history) == ["one"]  # up over the two lines of the last


def test_a_history_that_cannot_be_kept_is_no_obstacle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert lines_read("one\rtwo\r", 2, tmp_path / "file" / "history") == ["one", "two"]
    assert "messages are remembered until you leave" in capsys.readouterr().out


# ---- The whole, on a terminal


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers are noise, and as long as they may be."""
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", context=4096)


def test_a_conversation_at_a_terminal(tiny: Path, tmp_path: Path) -> None:
    arguments = ("chat", tiny, "--device", "cpu", "--greedy", "--max-tokens", 100)
    with Terminal(*arguments, columns=40, WASMETAL_HOME=str(tmp_path)) as terminal:
        greeting = plain(terminal.until(PROMPT))
        assert greeting.startswith(f"{tiny} on cpu:0 (")
        assert greeting.endswith("), 4096 tokens of context; /help lists the commands\n")
        said = terminal.line("hello")
        assert said.count("\n") > 1
        assert max(map(len, said.splitlines())) <= 40
        assert re.fullmatch(STATS + "\n", terminal.line("/stats"))
        assert terminal.line("/help").startswith("/system")
        terminal.type(CTRL_D)
        assert re.search(STATS + "\n$", plain(terminal.rest()))
        assert terminal.wait() == 0
    with Terminal(*arguments, WASMETAL_HOME=str(tmp_path)) as terminal:
        assert "/help lists" in plain(terminal.until(PROMPT))
        terminal.type(UP * 3 + b"\r")  # hello, from the run before
        terminal.until(b"\x1b[?2004l")
        assert "".join(plain(terminal.until(PROMPT)).split()) == "".join(said.split())
        terminal.type(b"/bye\r")
        terminal.rest()
        assert terminal.wait() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(tiny: Path, tmp_path: Path) -> None:
    arguments = ("chat", tiny, "--device", "cpu", "--greedy")
    with Terminal(*arguments, WASMETAL_HOME=str(tmp_path)) as terminal:
        terminal.until(PROMPT)
        terminal.type(b"hello\r")
        terminal.until(b"\x1b[?2004l")
        terminal.until(b"\n")  # it answers
        terminal.type(CTRL_C)
        terminal.until(PROMPT)
        context, _, _, decoded = map(int, re.findall(STATS, terminal.line("/stats"))[0])
        assert 0 < decoded < context < 4096
        terminal.type(b"wrong" + CTRL_C)  # at the prompt it clears the line
        assert "2 messages saved" in terminal.line(f"/save {tmp_path}/talk.json")
        terminal.type(CTRL_D)
        terminal.rest()
        assert terminal.wait() == 0
    assert [each["role"] for each in json.loads((tmp_path / "talk.json").read_text())] == ["user", "assistant"]


def test_one_answer_on_a_terminal_is_harmless_and_plain(tiny: Path) -> None:
    wild = ("--temperature", 100, "--top-k", 0, "--top-p", 1, "--min-p", 0, "--seed", 1, "--max-tokens", 200)
    arguments = ("chat", tiny, "--device", "cpu", "-p", "hello", *wild)
    controls = set(map(chr, range(0x20))) - set("\n\t")
    assert controls & set(wasmetal(*arguments).stdout)  # into a pipe, byte for byte
    with Terminal(*arguments) as terminal:
        shown = terminal.rest().decode()
        assert terminal.wait() == 0
    assert not controls & set(shown.replace("\r\n", "\n"))
    assert len(shown) > 20


def test_wrong_options_end_at_once(tiny: Path) -> None:
    with Terminal("chat", tiny, "--device", "cpu", "--top-p", 2) as terminal:
        assert plain(terminal.rest()) == "chat: --top-p is a number from 0 to 1, not '2'\n"
        assert terminal.wait() == 2


def test_output_into_a_file_is_answers_alone(tiny: Path) -> None:
    done = wasmetal("chat", tiny, "--device", "cpu", "--greedy", "--max-tokens", 4, stdin="/stats\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert not re.search(STATS, done.stdout)  # no commands: what is read is text


@pytest.mark.model
def test_a_real_answer_is_the_same_text_wrapped(smollm2: Path, tmp_path: Path) -> None:
    arguments = ("chat", smollm2, "--device", "cpu", "--greedy", "--max-tokens", 24)
    question = "What is a computer?"
    with Terminal(*arguments, columns=40, WASMETAL_HOME=str(tmp_path)) as terminal:
        terminal.until(PROMPT)
        said = terminal.line(question)
    lines = said.rstrip("\n").split("\n")
    assert max(map(len, lines)) <= 40
    assert len(lines) > 2
    assert said.split() == wasmetal(*arguments, "-p", question).stdout.split()
