"""slm.files: whole or not there, whatever is killed when; names; servers."""

import contextlib
import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from course.figures.files import calls_of
from slm import files
from slm.errors import SlmError
from slm.files import (
    answers,
    check_run_name,
    make_run_name,
    publish,
    user_path,
    write_text,
    writing,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_forced_then_renamed_then_the_rename_is_forced(tmp_path):
    part, path = tmp_path / "a.part", tmp_path / "a"
    part.write_text("new")
    path.write_text("old")
    assert calls_of(lambda: publish(part, path)) == [
        "fsync a file",
        "rename",
        "fsync a folder",
    ]
    assert path.read_text() == "new" and names(tmp_path) == ["a"]


def test_a_new_folder_and_its_parents_are_forced_into_what_they_lie_in(
    tmp_path, monkeypatch
):
    """Each name is forced before anything is written below it."""
    forced, force = [], files.force

    def seen(path):
        forced.append(path.relative_to(tmp_path).as_posix())
        force(path)

    monkeypatch.setattr(files, "force", seen)
    write_text(tmp_path / "runs/x/config.yaml", "a")
    assert forced == [".", "runs", forced[2], "runs/x"]
    assert forced[2].startswith("runs/x/config.yaml.")
    forced.clear()
    write_text(tmp_path / "runs/x/config.yaml", "b")  # now nothing above it is new
    assert len(forced) == 2 and forced[-1] == "runs/x"


def test_all_of_a_folder_is_forced_before_it_gets_its_name(tmp_path):
    part = tmp_path / "run.part"
    (part / "inner").mkdir(parents=True)
    for name in ("config", "inner/weights"):
        (part / name).write_text(name)
    calls = calls_of(lambda: publish(part, tmp_path / "run"))
    before, after = calls[: calls.index("rename")], calls[calls.index("rename") + 1 :]
    assert sorted(before) == ["fsync a file"] * 2 + ["fsync a folder"] * 2
    assert after == ["fsync a folder"]
    assert names(tmp_path) == ["run"] and (tmp_path / "run/inner/weights").exists()


def test_a_folder_that_holds_something_is_not_replaced(tmp_path):
    for name in ("run.part", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError):
        publish(tmp_path / "run.part", tmp_path / "run")
    assert (tmp_path / "run" / "file").read_text() == "run"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_while_writing_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(error), writing(path) as part:
        part.write_text("ne")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_full_disk_while_forcing_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_text_is_utf8_with_plain_line_ends_and_its_folder_is_made(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_text(path, "größer\n\u2028ende\r\n")
    assert path.read_bytes() == "größer\n\u2028ende\r\n".encode()
    assert names(path.parent) == ["file"]


FOR_EVER = """
import sys
from pathlib import Path
from slm.files import write_text
path = Path(sys.argv[1])
for n in range(10**9):
    write_text(path, "ab"[n % 2] * 300_000)
    if n == 0:
        print("once", flush=True)
"""


def test_a_reader_finds_a_whole_file_while_writers_are_shot(tmp_path):
    """Two writers of one file, killed with SIGKILL at random moments, and read all the time."""
    path, chance = tmp_path / "file", random.Random(0)
    for _ in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", FOR_EVER, str(path)], stdout=subprocess.PIPE
            )
            for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout.readline() == b"once\n"
        until = time.monotonic() + chance.uniform(0.05, 0.2)
        while time.monotonic() < until:
            assert_whole(path)
        for writer in writers:
            writer.kill()
            writer.communicate()
        assert_whole(path)


def assert_whole(path):
    text = path.read_text()
    assert len(text) == 300_000 and len(set(text)) == 1


@pytest.mark.parametrize("name", ["a", "gpt_124m", "2024-05.run", "_x", "-", "a" * 64])
def test_names_of_runs(name):
    assert check_run_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "a/b", "a b", "ä", "a\n", "a" * 65]
)
def test_what_cannot_name_a_run_is_one_sentence(name):
    with pytest.raises(SlmError, match="cannot name a run; allowed are letters"):
        check_run_name(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gpt_124m", "gpt_124m"),
        ("a&b", "a-b"),
        ("two words; rm -rf", "two-words-rm--rf"),
        ("..", "run"),
        (".hidden", "hidden"),
        ("Märchen", "M-rchen"),
        ("日本", "run"),
        ("", "run"),
        ("x" * 300, "x" * 64),
    ],
)
def test_a_name_is_made_of_any_text(text, name):
    assert make_run_name(text) == check_run_name(name) == name


class Handler(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self):
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def server(status):
    handler = type("Status", (Handler,), {"status": status})
    running = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


@pytest.mark.parametrize("status", [200, 403, 500])
def test_a_server_that_answers_and_one_that_tells_an_error(status):
    with server(status) as url:
        assert answers(url, seconds=10)


def test_an_http_error_is_an_answer(monkeypatch):
    def refuses(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 403, "no", Message(), None)

    monkeypatch.setattr(files.urllib.request, "urlopen", refuses)
    assert answers("https://example.org/")


def test_no_server_and_one_that_is_silent(waits_in):
    waits = waits_in(files)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert not answers(f"http://127.0.0.1:{closed.getsockname()[1]}/")
        closed.listen()  # now it takes the call and says nothing
        assert not answers(f"http://127.0.0.1:{closed.getsockname()[1]}/", seconds=0.2)
    assert waits == [1.0, 0.2]


@pytest.mark.parametrize(
    "error", [http.client.BadStatusLine("garbage"), http.client.IncompleteRead(b"")]
)
def test_an_answer_that_is_not_http_is_none(monkeypatch, error):
    def garbled(request, timeout):
        raise error

    monkeypatch.setattr(files.urllib.request, "urlopen", garbled)
    assert not answers("https://example.org/")


@pytest.mark.parametrize(
    "url", ["example.org", "", "http://", "http://exa mple.org/", "gopher://a"]
)
def test_what_is_no_url_of_a_server_gets_no_answer(url):
    """And no thread dies of it: its traceback would be printed."""
    assert not answers(url)


def test_an_address_that_is_looked_up_for_ever_is_not_waited_for(monkeypatch, waits_in):
    """Looking up an address knows no time limit of its own."""
    waits, let_go = waits_in(files), threading.Event()

    def looks_up(request, timeout):
        let_go.wait(30)
        raise OSError("no such address")

    monkeypatch.setattr(files.urllib.request, "urlopen", looks_up)
    assert not answers("https://example.org/", seconds=0.1)
    let_go.set()
    assert waits == [0.1]


def test_a_users_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/her")
    monkeypatch.setenv("DATA", "/data")
    (tmp_path / "$odd").touch()
    for written, right in {
        "a/b.txt": "a/b.txt",
        "~": "/home/her",
        "~/x": "/home/her/x",
        "$DATA/x": "/data/x",
        "${DATA}/x": "/data/x",
        "$odd": "$odd",  # it is there
        "a~b": "a~b",
        "5$": "5$",
    }.items():
        assert user_path(written) == Path(right), written
    for written, missing in {
        "$NOT_SET/x": "$NOT_SET",
        "a/${NOT_SET}": "${NOT_SET}",
        "~nobody-here/x": "~nobody-here",
    }.items():
        with pytest.raises(SlmError) as error:
            user_path(written)
        assert str(error.value).endswith(f"{missing} stands for nothing here.")
    with pytest.raises(SlmError, match="holds a zero byte"):
        user_path("a\0b")


def test_an_error_while_writing_names_the_file(tmp_path):
    """A full disk is found when something is written, and Python then names no file."""
    path = tmp_path / "a.txt"
    with pytest.raises(OSError) as caught, files.writing(path):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="^told already$"), files.writing(path):
        raise OSError("told already")
    with pytest.raises(FileNotFoundError) as caught, files.writing(path):
        open(tmp_path / "none")
    assert caught.value.filename == str(tmp_path / "none")
    assert not list(tmp_path.iterdir())
