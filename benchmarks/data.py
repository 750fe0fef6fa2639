"""Preparation of text beside `datasets.map` and the bare tokenizer, on one file, in turn, each in a process of its own.

    python benchmarks/data.py [--megabytes 20 100] [--repeats 3] [--datasets PYTHON] [--work FOLDER] [--page FILE]

The text is made of Python's documentation and sources: stretches of 200 to 1,500 words, each with three made-up numbers so
that no two are equal, as lines of JSON. The tokenizer is one of 8,192 tokens, learnt beforehand, the same for all.

- llmlab: from the file to the arrays that training reads, both parts, with the bytes of each held-out token.
- datasets.map: `load_dataset` of the file and `map` in as many processes as there are cores, ids written to its shards.
- bare: `tokenizers.encode_batch_fast` of texts that are in memory, a thousand at a time; ids are thrown away.

MB/s is of the file, least and median time of the repeats. Memory is the highest resident set, less that of the imports.
`datasets` is a peer and no dependency: PYTHON is one that has it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SIDES = {
    "llmlab": """
from llmlab.config.schema import Data, Tokenizer
from llmlab.data import prepare
import tokenizers, tempfile, os
began()
with tempfile.TemporaryDirectory() as cache:
    os.environ["LLMLAB_CACHE"] = cache
    found = prepare(Data(source="files", path=TEXT, seq_len=128), Tokenizer(kind="file", path=TOKENIZER))
    done(sum(found.manifest["tokens"].values()))
""",
    "datasets.map": """
import os
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import datasets, tempfile
from tokenizers import Tokenizer
datasets.disable_progress_bars()
inner = Tokenizer.from_file(TOKENIZER)
def ids(batch):
    return {"ids": [e.ids for e in inner.encode_batch_fast(batch["text"], add_special_tokens=False)]}
began()
with tempfile.TemporaryDirectory() as cache:
    rows = datasets.load_dataset("json", data_files=TEXT, split="train", cache_dir=cache)
    rows.map(ids, batched=True, num_proc=os.cpu_count(), remove_columns=["text"])
    done(0)
""",
    "bare": """
import json
from tokenizers import Tokenizer
inner = Tokenizer.from_file(TOKENIZER)
texts = [json.loads(line)["text"] for line in open(TEXT, encoding="utf-8")]
began()
done(sum(len(e.ids) for i in range(0, len(texts), 1000)
         for e in inner.encode_batch_fast(texts[i:i + 1000], add_special_tokens=False)))
""",
}
CLOCK = """
import json, sys, time
TEXT, TOKENIZER = sys.argv[1:]
def peak():
    # Not ru_maxrss, which begins with that of the process from which this one was forked.
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) / 1000 for line in f if line.startswith("VmHWM"))
def began():
    global SINCE, BEFORE
    SINCE, BEFORE = time.perf_counter(), peak()
def done(tokens):
    print(json.dumps({"seconds": time.perf_counter() - SINCE, "memory": peak() - BEFORE, "tokens": tokens}))
if __name__ == "__main__":
"""


def make_text(to: Path, megabytes: int) -> None:
    from llmlab.config.schema import Data
    from llmlab.data.sources import open_source

    found = [
        d.text.split(" ") for name in ("python_docs", "python_code") for d in _read(open_source(Data(source=name)))
    ]
    words, chance, size = [w for w in found if len(w) > 200], random.Random(0), 0
    with to.open("w", encoding="utf-8") as f:
        while size < megabytes * 10**6:
            of, n = chance.choice(words), chance.randint(200, 1500)
            at = chance.randrange(max(1, len(of) - n))
            text = of[at : at + n]
            for _ in range(3):
                text.insert(chance.randrange(len(text) + 1), f"{chance.getrandbits(32):x}")
            size += f.write(json.dumps({"text": " ".join(text)}) + "\n")


def _read(source):  # type: ignore[no-untyped-def]
    return source.read(lambda done, total: None)


def learn(text: Path, to: Path) -> None:
    """A tokenizer.json of 8,192 tokens, of the first texts of a file."""
    from llmlab.config.schema import Tokenizer
    from llmlab.data.tokenizer import make

    with text.open(encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for _, line in zip(range(3000), f, strict=False)]
    to.mkdir(exist_ok=True)
    make(Tokenizer(vocab_size=8192), texts, [], ("eos",)).save(to)


def once(side: str, python: str, text: Path, tokenizer: Path) -> dict[str, float]:
    body = "\n".join(f"    {line}" for line in SIDES[side].strip().splitlines())
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(CLOCK + body + "\n")
        script.flush()
        made = subprocess.run(
            [python, script.name, str(text), str(tokenizer)], capture_output=True, text=True, env=dict(os.environ)
        )
    if made.returncode:
        raise SystemExit(f"{side}: {made.stderr[-500:]}")
    return dict(json.loads(made.stdout.splitlines()[-1]))


def main() -> None:
    about = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about.add_argument("--megabytes", type=int, nargs="+", default=[20, 100])
    about.add_argument("--repeats", type=int, default=3)
    about.add_argument("--datasets", default=sys.executable, metavar="PYTHON")
    about.add_argument("--work", type=Path, default=None)
    about.add_argument("--page", type=Path, default=None)
    options = about.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        lines = ["| MB | | MB/s, best | median | beside llmlab | memory, MB |", "|---|---|---|---|---|---|"]
        for megabytes in options.megabytes:
            text, tokenizer = work / f"{megabytes}.jsonl", work / "tokenizer"
            if not text.exists():
                make_text(text, megabytes)
            if not tokenizer.exists():
                learn(text, tokenizer)
            found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
            for _ in range(options.repeats):
                for side, runs in found.items():
                    python = options.datasets if side == "datasets.map" else sys.executable
                    runs.append(once(side, python, text, tokenizer / "tokenizer.json"))
            size = text.stat().st_size / 1e6
            ours = min(r["seconds"] for r in found["llmlab"])
            for side, runs in found.items():
                seconds = [r["seconds"] for r in runs]
                lines.append(
                    f"| {megabytes} | {side} | {size / min(seconds):.2f} | {size / statistics.median(seconds):.2f} | "
                    f"{ours / min(seconds):.2f} | {max(r['memory'] for r in runs):.0f} |"
                )
    print("\n".join(lines))
    if options.page:
        options.page.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
