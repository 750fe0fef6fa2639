"""What takes too long for the tests: measured, and written to EVIDENCE.md with the commit and the machine.

    python benchmarks/evidence.py [--shakespeare FILE]

FILE is the tiny Shakespeare text (1.1 MB) that nanoGPT's published numbers were made with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llmlab.runs.record import cpu_name, versions

ROOT = Path(__file__).parents[1]
LLMLAB = [sys.executable, "-m", "llmlab"]


def train(*overrides: str, show: bool = False) -> dict:
    """The record of a run."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        subprocess.run(
            [*LLMLAB, "train", *overrides, f"hydra.run.dir={run}"],
            check=True,
            stdout=None if show else subprocess.DEVNULL,
        )
        return json.loads((run / "run.json").read_text())


def default_run() -> tuple[str, str, str]:
    record = train(show=True)
    bits, bigram = (record["metrics"][k] for k in ("val_bits_per_byte", "kneser_ney_bigram_bits_per_byte"))
    trigram = record["metrics"]["kneser_ney_trigram_bits_per_byte"]
    found = (
        f"{bits:.3f} bits per byte, {100 * (1 - bits / bigram):.1f} % below the bigram ({bigram:.3f}; trigram {trigram:.3f}); "
        f"{record['wall_seconds']:.0f} s, {record['tokens_per_second']:,.0f} tokens/s"
    )
    return "default run", "at least 15 % below the Kneser-Ney bigram, about 3 minutes", found


def shakespeare(file: Path) -> tuple[str, str, str]:
    losses = [
        train("experiment=nanogpt_shakespeare", f"data.path={file.resolve()}", f"seed={seed}")["metrics"]["val_loss"]
        for seed in (1, 2, 3)
    ]
    found = f"{statistics.mean(losses):.4f} (seeds 1, 2, 3: {', '.join(f'{x:.4f}' for x in losses)})"
    return "experiment=nanogpt_shakespeare, validation loss", "1.88 +- 0.03 (nanoGPT's README)", found


def start_up() -> tuple[str, str, str]:
    """Seconds until the first step of a second default run is done, against its imports and set-up alone."""

    def seconds(words: list[str]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    bare = seconds([sys.executable, "-c", "import lightning.pytorch, torch"])
    code = (
        "import time, llmlab\nfrom llmlab.config.compose import compose\ncomposed = compose([])\n"
        "start = time.perf_counter()\nfrom llmlab.training.recipe import Recipe\n"
        "import torch, lightning.pytorch\nstart = time.perf_counter()\nrecipe = Recipe.from_config(composed)\n"
        "from llmlab.model.build import build_model\nbuild_model(recipe.spec, 1)\nprint(time.perf_counter() - start)"
    )
    setup = statistics.median(
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(5)
    )
    firsts = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            words = [*LLMLAB, "train", f"hydra.run.dir={folder}/run"]
            start = time.perf_counter()
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("step 1/"):
                    break
            firsts.append(time.perf_counter() - start)
            process.kill()
            process.wait()
    first = statistics.median(firsts)
    found = f"{first:.2f} s against {bare:.2f} s of imports + {setup:.2f} s of set-up: {first / (bare + setup):.2f} x"
    return "first step of a second default run", "within 1.3 x of its imports and set-up", found


def step() -> tuple[str, str, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "step.py")], check=True, capture_output=True, text=True
    )
    return "tokens/s beside a hand-written loop", "at least 0.95 x", done.stdout.strip().splitlines()[-1]


PROMPTS = ("What is the capital of France?", "def fibonacci(n):\n", "Once upon a time in 1987,", "Zürich ist eine")


def smollm2() -> tuple[str, str, str]:
    """SmolLM2 as llmlab fetch brought it, beside transformers reading the same folder: greedy tokens and perplexity."""
    import math
    import pydoc_data.topics

    from llmlab.hub import fetch

    model = fetch.catalogue_entry("SmolLM2-135M-Instruct")
    what, wanted = f"hf={model.name} beside transformers", "the same greedy tokens; perplexity to 1e-3"
    if (folder := fetch.cached_folder(model)) is None:
        return what, wanted, f"not run: llmlab fetch {model.name} brings it"
    try:
        import torch
        import transformers
    except ImportError:
        return what, wanted, "not run: pip install transformers"
    from llmlab.commands.eval import evaluate
    from llmlab.decoding.generate import generate
    from llmlab.decoding.sampling import Sampling
    from llmlab.hub import text

    ours, tokens = text.load(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    same, total = 0, 0
    for prompt in PROMPTS:
        asked = words.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for put in (prompt, asked):
            ids = words(put, return_tensors="pt").input_ids
            out = theirs.generate(ids, max_new_tokens=48, do_sample=False)[0, ids.shape[1] :].tolist()
            found = generate(ours, tokens.encode(put), max_new=48, sampling=Sampling(temperature=0), stop=tokens.stops)
            same += list(found) == [i for i in out if i not in tokens.stops]
            total += 1
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "text.txt"
        file.write_text("\n\n".join(list(pydoc_data.topics.topics.values())[:12])[:24_000])
        mine = evaluate(None, path=str(file), hf=str(folder), seq_len=1024)["perplexity"]
        ids = words(file.read_text(), return_tensors="pt").input_ids[0]
    n = (len(ids) - 1) // 1024
    nll = 0.0
    with torch.no_grad():
        for i in range(0, n * 1024, 1024):
            logits = theirs(ids[None, i : i + 1024]).logits[0].double()
            nll += float(torch.nn.functional.cross_entropy(logits, ids[i + 1 : i + 1025], reduction="sum"))
    reference = math.exp(nll / (n * 1024))
    return (
        what,
        wanted,
        f"{same} of {total} prompts; perplexity {mine:.4f}, theirs {reference:.4f} ({n * 1024:,} tokens)",
    )


def mutants() -> tuple[str, str, str]:
    """A sample of small changes of the source: how many `llmlab check` and the tests notice. Half an hour, then it stops."""
    words = [sys.executable, str(ROOT / "benchmarks" / "mutants"), "--sample", "40", "--budget", "30"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found = "; ".join(line for line in done.stdout.splitlines() if " killed by check, " in line)
    wanted = "plugins: 85 % by check, 95 % with the tests; statistics: 95 %"
    return "changes of the source that are noticed (docs/mutants.md)", wanted, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shakespeare", type=Path, help="the tiny Shakespeare text")
    a = parser.parse_args()
    rows = []
    tasks = [default_run, start_up, step, smollm2, mutants]
    if a.shakespeare:
        tasks.append(lambda: shakespeare(a.shakespeare))
    for task in tasks:
        rows.append(task())
        print(f"{rows[-1][0]}: {rows[-1][2]}", flush=True)
    if not a.shakespeare:
        rows.append(("experiment=nanogpt_shakespeare", "1.88 +- 0.03", "not run: --shakespeare FILE names the text"))
    about = versions()
    lines = [
        "# Measured",
        "",
        f"Commit {about.get('commit', 'unknown')}, {cpu_name()}, torch {about['torch']}, Python {about['python']}. "
        "Written by `make evidence`.",
        "",
        "| what | wanted | found |",
        "|---|---|---|",
        *(f"| {what} | {wanted} | {found} |" for what, wanted, found in rows),
    ]
    (ROOT / "EVIDENCE.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
