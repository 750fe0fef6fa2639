"""hf=ORG/NAME: what a server on this machine has is downloaded once and used as a folder is."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from llmlab.commands import cli
from llmlab.errors import UserError
from llmlab.hub import locate

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The endpoints that snapshot_download asks: the repository, its tree, and each file."""

    files: dict[str, bytes] = {}
    asked: list[str] = []

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        tree = [
            {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
            for n, b in self.files.items()
        ]
        api = "/api/models/some/model"
        if path in (api, f"{api}/revision/main"):
            siblings = [{"rfilename": n} for n in self.files]
            self.answer(json.dumps({"id": "some/model", "modelId": "some/model", "sha": SHA, "siblings": siblings}))
        elif path == f"{api}/tree/{SHA}":
            self.answer(json.dumps(tree))
        elif (name := path.removeprefix(f"/some/model/resolve/{SHA}/")) in self.files:
            self.answer(self.files[name])
        else:
            self.answer("{}", 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def answer(self, body, status=200, headers=()):
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", SHA)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def server(transformers, tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("remote")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=words.save(folder), n_embd=8, n_layer=1, n_head=2, n_positions=32, eos_token_id=0, bos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    Hub.files = {p.name: p.read_bytes() for p in folder.iterdir()} | {"big.bin": b"x", "onnx/model.json": b"{}"}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


CODE = """\
import sys
from llmlab.commands import cli
for word in sys.argv[1:]:
    print(cli.run(["generate", f"hf={word}", "prompt=the fox", "max_new=5", "temperature=0"]), flush=True)
"""


PLAN = """\
import sys
from llmlab.commands import cli
cli.run(["plan", f"hf={sys.argv[1]}", "data.seq_len=16", "--json"])
"""


def run(home, endpoint, *names, code=CODE):
    keep = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and k[:3] != "HF_"}
    env = {**keep, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *names], env=env, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if line.startswith("error:")]


@pytest.mark.slow  # two processes that import torch
def test_a_repository_is_used_as_a_folder_is(server, tmp_path, capsys):
    endpoint, folder = server
    out, errors = run(tmp_path, endpoint, "some/model", "some/model", "no/model")
    cli.run(["generate", f"hf={folder}", "prompt=the fox", "max_new=5", "temperature=0"])
    text = capsys.readouterr().out
    assert out == f"{text}0\n{text}0\n1\n"
    (line,) = errors
    assert line.startswith("error: hf=no/model: there is no such folder and no such repository")
    got = [path for path in Hub.asked if path.startswith("GET /some/model/resolve")]
    assert len(got) == len(set(got)) and not [path for path in got if path.endswith(("big.bin", "onnx/model.json"))]
    out, errors = run(tmp_path, "http://127.0.0.1:9", "some/model", "other/model")  # nobody answers there
    assert out == f"{text}0\n1\n"
    (line,) = errors
    assert line.startswith("error: hf=other/model could not be downloaded, and no copy is here: ")


@pytest.mark.slow  # a process that imports torch
def test_a_plan_needs_the_config_alone(server, tmp_path):
    Hub.asked.clear()
    out, errors = run(tmp_path, server[0], "some/model", code=PLAN)
    vocabulary, dim = json.loads((server[1] / "config.json").read_text())["vocab_size"], 8
    assert not errors
    assert json.loads(out)["parameters"]["total"] == vocabulary * dim + 32 * dim + 12 * dim * dim + 13 * dim + 2 * dim
    got = [path for path in Hub.asked if path.startswith("GET /some/model/resolve")]
    assert [path.rpartition("/")[2] for path in got] == ["config.json"]


def test_the_package_is_asked_for_only_when_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"huggingface_hub is missing: pip install 'llmlab\[hf\]'$"):
        locate.locate("some/model")
    for name in ("", "nowhere", "../model", "/a/b", "a/b/c"):
        with pytest.raises(UserError, match="there is no such folder$"):
            locate.locate(name)
