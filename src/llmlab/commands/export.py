"""`llmlab export`: a checkpoint of a run as one folder, for llmlab or for Hugging Face's transformers, or its vectors."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmlab.commands.arguments import parse
from llmlab.errors import UserError
from llmlab.files import save_tensors, write_atomic
from llmlab.json_files import read_text

USAGE = """\
llmlab export run=FOLDER to=FOLDER [format=llmlab|hf|peft|word2vec] [step=N] [role=ROLE] [words=FILE]

Writes the weights of a run's newest intact checkpoint (or that of step N) to one folder, whatever its strategy.
format=llmlab  model.safetensors by parameter path, the model, the config and the tokenizer: what
               llmlab train init_from=FOLDER, llmlab generate run=FOLDER and llmlab eval run=FOLDER take
format=hf      config.json, model.safetensors and the tokenizer, as transformers loads them; an adapter is merged
format=peft    the adapter of a run with adapter=lora alone, as peft.PeftModel.from_pretrained reads it onto its base
format=word2vec  one file, named by to=FILE: "words width", then each token and its vector in a line, as gensim's
               KeyedVectors and llmlab train init_from.embedding=FILE read it
words=FILE     of format=word2vec, the words of a text, a line each, in place of all tokens: of objective=fasttext any word
role=ROLE      of the model that the run has trained beside its own in this role of the objective, as role=generator"""
FORMATS = ("llmlab", "hf", "peft", "word2vec")


@dataclass
class Arguments:
    run: str
    to: str
    format: str = "llmlab"
    step: int | None = None
    role: str | None = None
    words: str | None = None


def main(argv: Sequence[str]) -> int | None:
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    a = parse(argv, Arguments, "export")
    if a.format not in FORMATS:
        raise UserError(f"format={a.format} must be one of {', '.join(FORMATS)}")
    if a.words is not None and a.format != "word2vec":
        raise UserError(f"words={a.words} has no effect on format={a.format}; choose format=word2vec")
    said = export(a.run, Path(a.to), a.format, a.step, a.role, None if a.words is None else _words(Path(a.words)))
    print(f"{a.to}: {said}")
    return 0


def _words(path: Path) -> list[str]:
    try:
        lines = read_text(path).splitlines()
    except OSError as e:
        raise UserError(f"words={path} can't be read: {e.strerror}") from e
    if not (words := list(dict.fromkeys(word for line in lines if (word := line.strip())))):
        raise UserError(f"words={path} has no word")
    return words


def export(
    run: str | Path,
    to: Path,
    format: str = "llmlab",
    step: int | None = None,
    role: str | None = None,
    words: Sequence[str] | None = None,
) -> str:
    """Write the folder `to` (of format word2vec a file), or nothing; returns what it holds in a line.

    run: a run folder, one of its checkpoints, or what was exported before. role: of a companion that the run has trained;
    None: the model that it is for. words: whose vectors a file of vectors has; None: all tokens. UserError where there is no
    sound checkpoint of that step or no such companion, where `to` holds something already, or where the model has no place in
    a checkpoint of transformers.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"to={to}: there is something already; name a folder that is empty or not there")
    from llmlab.runs import folder

    path, home = _checkpoint(run, step), folder.home(run)
    if role is not None:
        from llmlab.runs.companion import trains

        trains(home, role)
    if format == "word2vec":
        return _word2vec(path, home, to, role, words)
    if format == "peft" and role is not None:
        raise UserError(f"role={role}: format=peft is of the adapter of the model itself; leave it out")
    write = functools.partial({"llmlab": _llmlab, "hf": _hf, "peft": _peft}[format], role=role)
    # replace, not str.format: a path may have braces.
    return _atomically(to, lambda temporary: write(path, home, temporary)).replace("{to}", str(to))


def _checkpoint(run: str | Path, step: int | None) -> Path:
    from llmlab.runs import checkpoint, folder, record

    if step is None:
        return folder.checkpoint_of(run)
    record.read(run)
    kept = checkpoint.all_of(Path(run) / checkpoint.FOLDER)
    found = [p for p in kept if checkpoint.step_of(p) == step]
    if not found:
        steps = ", ".join(str(checkpoint.step_of(p)) for p in kept) or "none"
        raise UserError(f"step={step}: {run} keeps no checkpoint of that step (kept: {steps})")
    return found[0]


def _llmlab(path: Path, home: Path, to: Path, role: str | None = None) -> str:
    from llmlab.data.tokenizer import BESIDE, SPECIAL, Tokenizer
    from llmlab.model import split_table
    from llmlab.model.serialise import to_dict
    from llmlab.runs import checkpoint, companion, record, text
    from llmlab.runs.files import CONFIG, EXPORT, SPEC, undamaged
    from llmlab.runs.folder import load

    # Loaded only to find out whether the weights can be used: copying does not look at them.
    checkpoint.read_weights(path)
    names = [CONFIG, SPEC, "tokenizer.json", SPECIAL, *(n for n in BESIDE if (home / n).exists())]
    spec = load(home)[1]  # as its config and model must be sound too
    if not checkpoint.is_export(path):
        undamaged(home, names, record.read(home))
    Tokenizer.load(home)
    for name in names:
        if not (home / name).is_file():
            raise UserError(f"{home}: there is no {name} there")
        # copyfile takes no permissions along: what a read-only run exports can be written to.
        shutil.copyfile(home / name, to / name)
    tied: dict[str, str] = {}
    if role is None:
        shutil.copyfile(path / checkpoint.WEIGHTS, to / checkpoint.WEIGHTS)
        tied = checkpoint.tied(path)
        if spec.table_delta:
            # The companion that reads the table without its delta stays behind.
            folded = split_table.folded(checkpoint.read_weights(path))
            save_tensors(to / checkpoint.WEIGHTS, {name: t for name, t in folded.items() if name not in tied})
            write_atomic(to / SPEC, json.dumps(to_dict(replace(spec, table_delta=False)), indent=1) + "\n")
    else:
        companion.write(path, home, role, to)
    about = {"run": str(home), "step": checkpoint.step_of(path), "data": text.recorded_fields(home).get("data") or {}}
    checkpoint.seal(to, EXPORT, [checkpoint.WEIGHTS, *names], {**about, "tied": tied})
    return f"the weights of step {about['step']:,}; use them as init_from={{to}} or run={{to}}"


def _hf(path: Path, home: Path, to: Path, role: str | None = None) -> str:
    from llmlab.hub import save_hf
    from llmlab.hub.save import exported
    from llmlab.hub.save_tokenizer import as_trained, save_tokenizer
    from llmlab.model import merging
    from llmlab.runs import checkpoint, companion
    from llmlab.runs.folder import load_model

    model, tokenizer = load_model(path)
    if role is not None:
        model = companion.load(path, home, role)
    save_hf(merging.merge(model), to)
    notes = [as_trained(tokenizer), save_tokenizer(to, tokenizer, model.sizes.max_positions)]
    said = f"the weights of step {checkpoint.step_of(path):,} as transformers reads them"
    if left_out := [f"heads.{role}" for role in model.heads if role not in exported(model.spec).heads]:
        said += f", without {' and '.join(left_out)}, which served training alone"
    return "; ".join([said, *filter(None, notes)])


def _word2vec(path: Path, home: Path, to: Path, role: str | None, words: Sequence[str] | None) -> str:
    from llmlab.runs import checkpoint, companion, vectors
    from llmlab.runs.folder import load, load_model

    if to.is_dir():
        raise UserError(f"to={to}: there is a folder; name a file that is not there, as to={to / 'vectors.txt'}")
    model, tokenizer = load_model(path)
    objective = vectors.objective(load(home)[0], tokenizer) if role is None else None
    if role is not None:
        model = companion.load(path, home, role)
    if words is None:
        names = vectors.names(tokenizer)
        words, table = list(names), vectors.of_model(model, objective)[list(names.values())]
    else:
        table = vectors.of_words(model, words, tokenizer, objective)
    write_atomic(to, "".join(vectors.lines(words, table)))
    what = f"{len(words):,} vectors of {table.shape[1]} numbers of step {checkpoint.step_of(path):,}"
    return f"{what}; use them as init_from.embedding={to}"


def _peft(path: Path, home: Path, to: Path, role: str | None = None) -> str:
    from llmlab.config.init_from import hf_name
    from llmlab.hub.save_adapter import save_adapter
    from llmlab.runs import checkpoint
    from llmlab.runs.folder import load, load_model

    cfg = load(home)[0]
    start = cfg.init_from
    if cfg.train.learns is not None:
        raise UserError(
            f"format=peft writes the adapter alone, but train.learns=[{','.join(cfg.train.learns)}] says what learnt; "
            "format=hf writes all of the model, with its adapter merged"
        )
    save_adapter(load_model(path)[0], to, hf_name(start) if start else None)
    return f"the adapter of step {checkpoint.step_of(path):,} as PEFT reads it"


def _atomically(to: Path, fill: Callable[[Path], str]) -> str:
    """Fill a hidden folder beside `to` and rename it; nothing is left of it on an error."""
    target = to.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target: os.rename works within one file system only.
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as e:
        raise UserError(f"to={to} can't be written: {e.strerror}") from e
    try:
        said = fill(temporary)
        # mkdtemp makes a folder that its owner alone can read.
        temporary.chmod(0o755)
        # rename(2) takes the place of an empty folder, and refuses one that is not empty.
        os.rename(temporary, target)
    except OSError as e:
        raise UserError(f"to={to} can't be written: {e.strerror or e}") from e
    finally:
        # After the rename there is none, which ignore_errors covers.
        shutil.rmtree(temporary, ignore_errors=True)
    return said
