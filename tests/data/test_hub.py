"""slm.data.hub: a data set of the hub, read from a stand-in server that can fail in many ways."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest

from slm.data.hub import hub_error

COMMIT = "a" * 40
ROWS = [{"text": f"document {i} " * 20} for i in range(2000)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
PARTS = "---\nconfigs:\n- config_name: en\n  data_files: train.jsonl\n- config_name: de\n  data_files: train.jsonl\n---\n"


class Hub(http.server.BaseHTTPRequestHandler):
    """Data sets called FAULT/corpus, each with the fault that its owner's name says; `well/corpus` has none."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, body: bytes, status: int = 200, cut: bool = False, **head: str):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **head}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD" and self.fault == "drip":
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(0.2)
        elif self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)

    def _file(self, name: str) -> None:
        if name not in self.files:
            self._send(b"", 404, X_Error_Code="EntryNotFound")
            return
        data = self.files[name]
        head = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": COMMIT}
        if self.command == "HEAD" or not name.endswith("jsonl"):
            self._send(data, **head)
            return
        wanted = re.match(r"bytes=(\d+)", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        self.asked.append(self.fault)
        if wanted:
            head["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.fault == "cut" or (
            self.fault == "cut-once" and self.asked.count("cut-once") == 1
        )
        if self.fault == "file-500":
            self._send(b"", 500)
        else:
            self._send(data[start:], 206 if wanted else 200, cut, **head)

    @property
    def files(self) -> dict[str, bytes]:
        parts = PARTS.encode() if self.fault == "parts" else b"# A corpus\n"
        card = b"---\nconfigs: [\n---\n" if self.fault == "card" else parts
        return {
            "README.md": card,
            "train.jsonl": b"" if self.fault == "empty" else TEXT,
        }

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), Content_Type="application/json")

    def _tree(self, names: object = None) -> None:
        self._json(
            [
                {"type": "file", "path": name, "size": len(data), "oid": "1"}
                for name, data in self.files.items()
                if names is None or name in names  # type: ignore[operator]
            ]
        )

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.unquote(self.path.split("?")[0])
        at = re.match(r"(?:/api)?/datasets/([^/]+)/corpus", path)
        self.fault = at[1] if at else ""
        api = f"/api/datasets/{self.fault}/corpus"
        if self.fault in ("500", "429", "401"):
            self._send(b"", int(self.fault))
        elif self.fault == "portal":
            self._send(b"<html>Please log in</html>", Content_Type="text/html")
        elif self.fault == "list":
            self._json([])
        elif file := re.fullmatch(r"/datasets/[^/]+/corpus/resolve/[^/]+/(.+)", path):
            self._file(file[1])
        elif path.startswith(f"{api}/tree"):
            self._tree()
        elif path.startswith(f"{api}/paths-info"):
            self._tree(urllib.parse.parse_qs(body.decode()).get("paths", []))
        elif path == f"{api}/revision/v9":
            self._send(b"{}", 404, X_Error_Code="RevisionNotFound")
        elif re.fullmatch(rf"{api}(/revision/.*)?", path):
            named = [{"rfilename": name} for name in self.files]
            known = dict(private=False, gated=False, disabled=False, tags=[])
            known |= dict(downloads=0, likes=0, siblings=named, sha=COMMIT)
            self._json({"_id": "1", "id": f"{self.fault}/corpus", **known})
        else:
            self._send(b"{}", 404, X_Error_Code="RepoNotFound")

    do_GET = do_HEAD = do_POST = answer


READ = """
import sys
from slm.data.corpus import DataConfig, find_source
from slm.data import hub
from slm.errors import SlmError
for name in sys.argv[1:]:
    name, _, streaming = name.partition(" ")
    hub.PATIENCE = 2.0 if name.startswith("drip") else 600.0
    try:
        source = find_source(DataConfig(name, streaming=bool(streaming)))
        both = [list(source.read(side).pieces(lambda n: None)) for side in ("train", "validation")]
        print(*map(len, both), sum(len(piece.text) for pieces in both for piece in pieces))
    except SlmError as error:
        print(error.retry, error)
"""
CASES = {
    "500/corpus": "True .*500",
    "429/corpus": r"True .*too many requests were made \(429\): try again",
    "portal/corpus": "True .*not the hub, but a login page or a proxy",
    "well/korpus": "False .*has no data set 'well/korpus', or it is private",
    "wéll/corpus": "False 'wéll/corpus' is no name of the hub: allowed are letters",
    "well/cor--pus": "False 'well/cor--pus' is no name of the hub: allowed are letters",
    "well/corpus@v9": "False 'well/corpus' has no revision 'v9'",
    "parts/corpus": "False .*several parts; it has 'en', 'de': say which: 'parts/corp",
    "parts/corpus:enn": "False .*no part 'enn'.*'parts/corpus:en'",
    "file-500/corpus": "True .*500",
    "401/corpus": r"False .*: it is not open to everybody \(401\); log in with `hf auth",
    "list/corpus": "True .*not the hub, but a login page or a proxy",
    "empty/corpus": r"False Cannot read 'empty/.*: what it holds is empty, or no data set \(Stop",
    "card/corpus": r"False Cannot read 'card/.*: what it holds is empty, or no data set \(while",
    "drip/corpus": "True .*no whole answer came in 2 seconds: try again",
    "cut/corpus": "True Cannot read 'cut/corpus' from .*connection",
}
READABLE = ["well/corpus", "well/corpus stream", "cut-once/corpus", "parts/corpus:de"]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a process of its own says of each, since the libraries read their settings when they are imported."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    environment["HF_HOME"] = str(tmp_path_factory.mktemp("hf"))
    names = [*CASES, *READABLE]
    done = subprocess.run(
        [sys.executable, "-c", READ, *names],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=900,
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    return dict(zip(names, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_what_the_hub_cannot_give_is_one_sentence(name, said):
    assert re.match(CASES[name], said[name]) and said[name].endswith("."), said[name]


@pytest.mark.parametrize("name", READABLE)
def test_what_it_can_give_is_read_whole_though_a_download_breaks_off(name, said):
    n_train, n_validation, characters = map(int, said[name].split())
    assert n_train + n_validation == len(ROWS) and n_validation > 100
    assert characters == sum(len(row["text"]) for row in ROWS)


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_a_disk_that_cannot_be_written_is_told_with_its_path(tmp_path, link):
    """As `datasets` tells it: a file that cannot be found, because another failed."""
    error = FileNotFoundError("Couldn't find any data file at /x/corpus.")
    path = str(tmp_path / "token")
    setattr(error, link, PermissionError(13, "Permission denied", path))
    told = hub_error("well/corpus", error)
    assert f": Permission denied: {path}; HF_HOME names the folder" in str(told)
    assert not told.retry and "data file" not in str(told)


def test_the_download_did_break_off(said):
    assert Hub.asked.count("cut-once") == 2
