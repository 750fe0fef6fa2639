"""Word vectors of llmlab beside gensim's, of the same words with the same options, in turn on one core.

    python benchmarks/word_vectors.py --gensim PYTHON [--fasttext] [--epochs 5] [--work FOLDER] [OVERRIDE ...]

gensim is a peer and no dependency: PYTHON is one that has it (`python -m venv v; v/bin/pip install gensim`). Both read
Python's documentation in words that occur five times at least, a document a line. Rows: ours, gensim's, and gensim's with
another seed, which says how alike two right ones are.

- words/s: of training alone, as each side reports it; on one thread.
- held out: of neighbours in documents that neither has seen, the share whose cosine is above that of the first and a word
  drawn by frequency; 0.5 is chance.
- overlap: of the ten nearest words of each of the 300 most frequent ones, the share that gensim's first has too.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DIM, WINDOW, NEGATIVES, SUBSAMPLE, LEAST = 100, 5, 5, 1e-3, 5
NGRAMS, BUCKETS = (3, 6), 100_000
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
GENSIM = """
import json, sys, time
from gensim.models import FastText, Word2Vec
a = json.loads(sys.argv[1])
text = [line.split() for line in open(a["text"], encoding="utf-8")]
more = {"min_n": a["ngrams"][0], "max_n": a["ngrams"][1], "bucket": a["buckets"]} if a["fasttext"] else {}
model = (FastText if a["fasttext"] else Word2Vec)(
    sg=1, vector_size=a["dim"], window=a["window"], negative=a["negatives"], sample=a["subsample"], min_count=1,
    seed=a["seed"], workers=1, **more,
)
model.build_vocab(text)
began = time.perf_counter()
model.train(text, total_examples=model.corpus_count, epochs=a["epochs"])
print(json.dumps({"seconds": time.perf_counter() - began}))
model.wv.save_word2vec_format(a["to"])
"""
CHECK = """
import sys
from gensim.models import KeyedVectors
print(len(KeyedVectors.load_word2vec_format(sys.argv[1])))
"""


def texts(work: Path) -> tuple[list[list[str]], list[list[str]]]:
    """(training, held-out) documents, also in files as both sides read them."""
    from llmlab.config.schema import Data
    from llmlab.data.sources import open_source

    source = open_source(Data(source="python_docs"))
    documents = [re.findall(r"[a-z]+", d.text.lower()) for d in source.read(lambda *_: None)]
    documents = [d for d in documents if len(d) > 20]
    kept = {w for w, n in collections.Counter(w for d in documents for w in d).items() if n >= LEAST}
    documents = [[w for w in d if w in kept] for d in documents]
    train, held = [d for i, d in enumerate(documents) if i % 10], documents[::10]
    seen = {w for d in train for w in d}
    (work / "text").mkdir()
    for i, document in enumerate(train):
        (work / f"text/{i:05}.txt").write_text(" ".join(document))
    (work / "text.txt").write_text("\n".join(map(" ".join, train)) + "\n")
    vocabulary = {"<unk>": 0, **{w: i for i, w in enumerate(sorted(seen), 1)}}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    (work / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": model, "pre_tokenizer": {"type": "WhitespaceSplit"}})
    )
    return train, [[w for w in d if w in seen] for d in held]


def ours(work: Path, words: int, a: argparse.Namespace) -> tuple[Path, float]:
    """(file of vectors, words a second)."""
    llmlab, run, to = Path(sys.executable).with_name("llmlab"), work / "run", work / "ours.txt"
    objective = "fasttext" if a.fasttext else "skipgram"
    overrides = [
        f"objective={objective}", f"objective.window={WINDOW}", f"objective.negatives={NEGATIVES}",
        f"objective.subsample={SUBSAMPLE}", "data=files", f"data.path={work / 'text'}", "tokenizer=file",
        f"tokenizer.path={work / 'tokenizer.json'}", "data.bos=false", "data.validation=0.01", "model=llama3",
        f"model.dim={DIM}", "model.n_layers=1", "model.n_heads=2", f"budget.tokens={words * a.epochs}", "optimizer.lr=1e-2",
        "train.batch_size=32", "data.seq_len=128", "train.sample=false", "data.num_workers=0", "trainer.devices=1",
        "trainer.accelerator=cpu", f"hydra.run.dir={run}", *a.overrides,
    ]  # fmt: skip
    if a.fasttext:
        overrides += [f"objective.ngrams=[{NGRAMS[0]},{NGRAMS[1]}]", f"heads.context.buckets={BUCKETS}"]
    subprocess.run([llmlab, "train", *overrides], check=True, env=ONE_THREAD, stdout=subprocess.DEVNULL)
    subprocess.run(
        [llmlab, "export", f"run={run}", f"to={to}", "format=word2vec"], check=True, stdout=subprocess.DEVNULL
    )
    return to, float(json.loads((run / "run.json").read_text())["tokens_per_second"])


def gensims(work: Path, words: int, a: argparse.Namespace, seed: int) -> tuple[Path, float]:
    to = work / f"gensim{seed}.txt"
    options = {
        "text": str(work / "text.txt"), "to": str(to), "seed": seed, "epochs": a.epochs, "fasttext": a.fasttext,
        "dim": DIM, "window": WINDOW, "negatives": NEGATIVES, "subsample": SUBSAMPLE, "ngrams": NGRAMS, "buckets": BUCKETS,
    }  # fmt: skip
    done = subprocess.run(
        [a.gensim, "-c", GENSIM, json.dumps(options)], check=True, env=ONE_THREAD, capture_output=True, text=True
    )
    return to, words * a.epochs / float(json.loads(done.stdout)["seconds"])


def unit_vectors(path: Path, words: list[str]) -> np.ndarray:
    lines = (line.split(" ") for line in path.read_text(encoding="utf-8").splitlines()[1:])
    known = {word: numbers for word, *numbers in lines}
    table = np.array([known[w] for w in words], dtype=np.float64)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def nearest(table: np.ndarray, n: int, k: int = 10) -> list[set[int]]:
    scores = table[:n] @ table.T
    scores[np.arange(n), np.arange(n)] = -np.inf
    return [set(np.argsort(-row)[:k].tolist()) for row in scores]


def held_out(table: np.ndarray, documents: list[list[int]], share: np.ndarray) -> float:
    chance = np.random.default_rng(0)
    right = []
    for ids in map(np.array, documents):
        if len(ids) < 2:
            continue
        drawn = chance.choice(len(share), size=len(ids) - 1, p=share)
        pairs, others = ((table[ids[:-1]] * table[of]).sum(1) for of in (ids[1:], drawn))
        right += (pairs > others)[ids[:-1] != ids[1:]].tolist()
    return float(np.mean(right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gensim", required=True, help="a Python that has gensim")
    parser.add_argument("--fasttext", action="store_true", help="FastText in place of skipgram")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--work", type=Path, help="an empty folder for all that is written")
    parser.add_argument("overrides", nargs="*", help="of our run")
    a = parser.parse_args()
    work = a.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    train, held = texts(work)
    often = collections.Counter(w for d in train for w in d)
    words, number = [w for w, _ in often.most_common()], sum(often.values())
    at = {w: i for i, w in enumerate(words)}
    documents, share = [[at[w] for w in d] for d in held], np.array([often[w] for w in words]) / number
    print(
        f"{number:,} words, {len(words):,} of them different; {'fasttext' if a.fasttext else 'skipgram'}, {a.epochs} epochs"
    )
    began = time.perf_counter()
    rows = {
        "llmlab": ours(work, number, a),
        "gensim": gensims(work, number, a, 1),
        "gensim, seed 2": gensims(work, number, a, 2),
    }
    read = subprocess.run([a.gensim, "-c", CHECK, rows["llmlab"][0]], check=True, capture_output=True, text=True)
    print(
        f"gensim's KeyedVectors reads {int(read.stdout):,} of our vectors; {time.perf_counter() - began:.0f} s in all\n"
    )
    tables = {name: unit_vectors(path, words) for name, (path, _) in rows.items()}
    first = nearest(tables["gensim"], 300)
    print(f"{'':16}{'words/s':>10}{'held out':>10}{'overlap':>10}")
    for name, table in tables.items():
        overlap = np.mean([len(x & y) / 10 for x, y in zip(nearest(table, 300), first, strict=True)])
        print(f"{name:16}{rows[name][1]:>10,.0f}{held_out(table, documents, share):>10.3f}{overlap:>10.2f}")


if __name__ == "__main__":
    main()
