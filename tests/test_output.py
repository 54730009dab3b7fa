"""What commands print, read from the bytes that reach the terminal or file."""

import ast
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from nnunet_glims import cli
from nnunet_glims.cli import COMMANDS, main
from nnunet_glims.cli.output import new_console
from tests.test_structure import FOLDERS, PACKAGE

HOSTILE = "a\x1b[31mred\x1b]0;title\x07\x9b2K\rb\x08\x7f\u202ecod.exe\x00\u2028.json"


class Terminal(io.TextIOWrapper):
    """Standard output of an encoding that refuses every other character, as Python's own does."""

    def __init__(self, encoding, is_terminal=False):
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal

    @property
    def bytes(self):
        return self.buffer.getvalue()


@pytest.fixture
def terminal(monkeypatch):
    def attach(encoding, is_terminal=False):
        streams = [Terminal(encoding, is_terminal) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        return streams

    return attach


def command(monkeypatch, run):
    """Let `nnunet-glims env` do something else."""
    monkeypatch.setattr(cli.import_module(f"{PACKAGE}.cli.env"), "run", run)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_every_help_and_list_can_be_printed_in_every_encoding(terminal, encoding):
    out, errors = terminal(encoding)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
    assert main(["plans", "list"]) == 0
    assert main(["plans", "show", "über→α.json"]) == 2
    text = out.bytes.decode(encoding)
    assert "96³" in text if encoding in ("utf-8", "cp1252") else "96^3" in text
    assert "there is no such file" in errors.bytes.decode(encoding)


def test_characters_an_encoding_lacks_become_similar_ones_or_are_written_out(terminal, monkeypatch):
    out, _ = terminal("ascii")
    command(monkeypatch, lambda _: print("3 × 96³ ± 1 → α", os.fsdecode(b"caf\xe9")))
    main(["env"])
    assert out.bytes == rb"3 x 96^3 +/- 1 -> \u03b1 caf\xe9" + b"\n"
    out, _ = terminal("utf-8")
    main(["env"])
    assert out.bytes == "3 × 96³ ± 1 → α caf\\xe9\n".encode()


def draw(_):
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE, "red"))
    console = new_console()
    console.print(table)
    console.print(HOSTILE, soft_wrap=True)


def test_columns_of_a_table_are_straight_in_every_encoding(terminal, monkeypatch):
    def draw_numbers(_):
        table = Table("Dice", "case")
        table.add_row("1.000 ± 0.000", "größe→")
        new_console().print(table)

    out, _ = terminal("ascii")
    command(monkeypatch, draw_numbers)
    main(["env"])
    lines = out.bytes.decode("ascii").splitlines()
    assert "1.000 +/- 0.000" in lines[3] and len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("run", [lambda _: print(HOSTILE), draw], ids=["printed", "drawn"])
def test_no_control_character_of_a_name_reaches_the_output(terminal, monkeypatch, run, encoding):
    out, _ = terminal(encoding)
    command(monkeypatch, run)
    assert main(["env"]) == 0
    text = out.bytes.decode(encoding)
    assert "\\x1b[31mred" in text and "\\u202e" in text
    assert not {character for character in text if not character.isprintable()} - {"\n"}


def test_on_a_terminal_only_colours_of_the_tables_own_are_sequences(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out, _ = terminal("utf-8", is_terminal=True)
    command(monkeypatch, draw)
    assert main(["env"]) == 0
    text = out.bytes.decode()
    assert "\x1b[31ma\\x1b[31mred" in text  # its own sequence for red, and that of the name, which is written out
    assert "\x07" not in text and "\x9b" not in text and "\x1b]" not in text


def test_names_in_errors_and_tracebacks_are_harmless(terminal, monkeypatch):
    def fail(_):
        raise OSError(HOSTILE)

    _, errors = terminal("ascii")
    command(monkeypatch, fail)
    assert main(["env"]) == 1
    assert main(["--debug", "env"]) == 1
    with pytest.raises(SystemExit):
        main(["\x1b[1A"])
    assert errors.bytes.count(rb"\x1b[31mred") == 3 and b"Traceback" in errors.bytes
    assert rb"\x1b[1A" in errors.bytes and b"\x1b" not in errors.bytes


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: open("/nowhere/a"), "/nowhere/a: No such file or directory"),
        (lambda: os.mkdir("/x" + "y" * 300), f"/x{'y' * 300}: File name too long"),
        (lambda: os.rename("/nowhere/a", "/nowhere/b"), "/nowhere/a → /nowhere/b: No such file or directory"),
        (lambda: os.listdir(b"/nowhere/\xff"), "/nowhere/\\xff: No such file or directory"),
        (lambda: [0] * 10**18, "there is not enough memory: run it where there is more, or with fewer --workers"),
    ],
)
def test_an_error_of_the_system_names_its_file(terminal, monkeypatch, call, text):
    _, errors = terminal("utf-8")
    command(monkeypatch, lambda _: call())
    assert main(["env"]) == 1
    assert errors.bytes.decode().startswith(f"nnunet-glims env: {text}")


def test_ctrl_c_is_one_line_and_130(terminal, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    out, errors = terminal("utf-8")
    command(monkeypatch, interrupt)
    assert main(["env"]) == 130
    assert errors.bytes == b"nnunet-glims env: stopped by Ctrl-C\n" and out.bytes == b""


STOPPED = """
import os, sys, time
from nnunet_glims import cli
from nnunet_glims.files import new_folder
def run(_):
    with new_folder(__import__('pathlib').Path(sys.argv[1], 'out')):
        os.kill(os.getpid(), int(sys.argv[2]))
        time.sleep(60)
cli.import_module('nnunet_glims.cli.env').run = run
sys.exit(cli.main(['env']))
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_command_that_is_asked_to_end_cleans_up_and_ends_by_the_signal(tmp_path, name):
    number = getattr(signal, name)
    result = subprocess.run(
        [sys.executable, "-c", STOPPED, tmp_path, str(int(number))],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert (result.returncode, result.stderr) == (-number, f"nnunet-glims env: stopped by {name}\n")
    assert list(tmp_path.iterdir()) == []


def test_streams_are_given_back(terminal):
    out, errors = terminal("utf-8")
    main(["env"])
    assert sys.stdout is out and sys.stderr is errors


PROGRAM = "import sys; from nnunet_glims.cli import main; sys.exit(main(['plans', 'list']))"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk_fails_and_says_so_once():
    with open("/dev/full", "w") as full:
        result = subprocess.run([sys.executable, "-c", PROGRAM], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (
        1,
        "nnunet-glims plans: the output cannot be written: No space left on device\n",
    )


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("ending", ["2>&- | true", ">&-"])
def test_output_that_nobody_reads_is_no_error(ending):
    line = f'set -o pipefail; "{sys.executable}" -c "{PROGRAM}" {ending}'
    environment = {**os.environ, "LC_ALL": "C"}  # bash complains about a locale that is not installed
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_commands_draw_on_no_other_console():
    """A console of rich's own would not know which escape sequences are those of file names."""
    others = [
        f"{path.name}:{node.lineno}"
        for path in (FOLDERS[PACKAGE] / "cli").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console"
    ]
    assert others == []
