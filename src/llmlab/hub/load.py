"""Read a Hugging Face checkpoint folder into a model made of parts."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from llmlab.config import layout
from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.hub import config_ranges, header_check
from llmlab.hub.entry import STATED, Config, Entry, Head
from llmlab.hub.families import entries
from llmlab.hub.files import read_beside, read_config, read_shapes, read_tensors
from llmlab.hub.model import HubModel
from llmlab.hub.rules import Rule, expand
from llmlab.model import finite
from llmlab.model.build import assemble, materialise
from llmlab.model.model import Model


def load_hf(folder: str | Path, *, dtype: torch.dtype = torch.float32, verbose: bool = True) -> HubModel:
    """The checkpoint in `folder` (config.json and safetensors) as a model that answers as the reference's class does.

    dtype: of the parameters. UserError names what is unknown, missing, left over or of another shape; nothing is guessed.
    """
    folder = Path(folder)
    about = describe(folder)
    entry, head, config, full = about.entry, about.head, about.config, about.full
    model = _assembled(about, folder)
    # A dry run on meta tensors, whose copy_ does nothing: what does not fit is said before it takes memory.
    fill(model, entry, rename(about, read_shapes(folder)), folder)
    tensors = rename(about, read_tensors(folder))
    materialise(model)
    dtypes, read, ignored = fill(model, entry, tensors, folder)
    # Ignored tensors may hold anything: GPT-2's `masked_bias` is a buffer, DeepSeek's layer 61 another objective's.
    finite.check({name: tensor for name, tensor in tensors.items() if name not in set(ignored)}, folder)
    if ignored and verbose:
        more = " ..." if len(ignored) > 8 else ""
        # stdout is for what a model writes.
        print(f"{folder}: ignored {', '.join(ignored[:8])}{more}", file=sys.stderr)
    beside = read_beside(folder)
    begin = None if head.begin is None else head.begin(full)
    unread = _unread(model, entry, tensors)
    # eval() as from_pretrained does; a fresh nn.Module is in training mode.
    return HubModel(model.to(dtype).eval(), config, head, dtypes, read, unread=unread, beside=beside, begin=begin)


def _unread(model: Model, entry: Entry, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that the reference holds but does not read, where they are not those that it reads in their stead."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    rules = expand([rule for rule in entry.rules if rule.copies], shapes, model.spec)
    pairs = [(name, rule.theirs[0]) for rule in rules for name in rule.copies if {name, rule.theirs[0]} <= set(tensors)]
    return {name: tensors[name] for name, other in pairs if not torch.equal(tensors[name], tensors[other])}


# float8 is not among them: its scales are tensors of their own, by which nothing here multiplies.
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Description:
    """A checkpoint by its config.json (`config`). full: with the family's defaults, and tied as its tensors are."""

    entry: Entry
    head: Head
    config: Config
    full: Config

    @property
    def spec(self) -> ModelSpec:
        return spec_of(self.entry, self.head, self.full)

    def headed(self, spec: ModelSpec) -> ModelSpec:
        """A spec with the heads and stacks of the class that `architectures` names."""
        return _headed(spec, self.head, self.full)

    @property
    def overrides(self) -> list[str]:
        """The model as one would type it."""
        return [*self.entry.read(self.full), *self.head.overrides]

    @property
    def trained(self) -> list[str]:
        """The same of a run that begins with it, which trains by its family's objective where config.json asks for none."""
        return [o for o in self.overrides if o != f"objective={self.entry.looks_by}"]


def describe(folder: Path, *, bare: bool = False) -> Description:
    """The checkpoint in `folder`. Of its weights the headers are read, the token table and the head; bare: nothing is, and
    they may be quantised.
    """
    config = read_config(folder)
    entry, head = find({k: v for k, v in config.items() if not bare or k != "quantization_config"}, folder)
    # Before any number of it makes a list or a tensor.
    with _explained(entry, config, folder):
        config_ranges.check(config, entry.defaults)
    header_check.check_list_lengths(config, folder / "config.json")
    names = [] if entry.head_key is None else [entry.head_key, *_tables(entry)]
    full = _decide_tie(entry, {**entry.defaults, **config}, {} if bare else read_tensors(folder, names))
    with _explained(entry, full, folder):
        overrides, _ = entry.read(full), head.heads(full)
    if not bare:
        header_check.check_counts(
            [*overrides, *head.overrides], head.stacks, read_shapes(folder), folder / "config.json"
        )
    return Description(entry, head, config, full)


def check(folder: Path) -> None:
    """UserError for what `load_hf` would refuse, from config.json and the headers of the files alone."""
    about = describe(folder)
    fill(_assembled(about, folder), about.entry, rename(about, read_shapes(folder)), folder)


def _assembled(about: Description, folder: Path) -> Model:
    with _explained(about.entry, about.full, folder):
        return assemble(about.spec)


@contextmanager
def _explained(entry: Entry, config: Config, folder: Path) -> Iterator[None]:
    """Turns errors about values of another kind, or sizes that a part or torch refuses, into one line that names the file."""
    file = folder / "config.json"
    null = [key for key, default in entry.defaults.items() if config.get(key) is None and default is not None]
    which = f"; null: {', '.join(null)}" if null else ""
    try:
        yield
    except (TypeError, LookupError, AttributeError, ArithmeticError) as e:
        raise UserError(f"{file} is no {config['model_type']} config: {type(e).__name__}: {e}{which}") from e
    except (ValueError, RuntimeError) as e:  # UserError among them
        said = "; ".join(line.removeprefix("config.json: ") for line in str(e).splitlines())
        raise UserError(f"{file}: {said}{which if 'null' in said else ''}") from None


def find(config: Config, folder: Path) -> tuple[Entry, Head]:
    known = entries()
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise UserError(
            f"{folder / 'config.json'}: model_type={kind!r} is not implemented; known: {', '.join(sorted(known))}"
        )
    # The key stands in files of every quantiser (bitsandbytes, GPTQ, FP8), whose
    # tensors bear the names of plain weights.
    if config.get("quantization_config"):
        raise UserError(
            f"{folder / 'config.json'}: quantization_config is not implemented; give the weights unquantised"
        )
    entry = known[kind]
    # A config.json that was written by hand may lack the key; of several names the first counts.
    names = config.get("architectures") or list(entry.architectures)[:1]
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise UserError(f"{folder / 'config.json'}: architectures={names!r} must be a list of names")
    if names[0] not in entry.architectures:
        raise UserError(
            f"{folder / 'config.json'}: architectures={names[0]!r} is not implemented; known: {', '.join(entry.architectures)}"
        )
    return entry.at(config), entry.architectures[names[0]]


def spec_of(entry: Entry, head: Head, config: Config) -> ModelSpec:
    """The parts and sizes that a config.json asks for."""
    config = {**entry.defaults, **config}
    return _headed(_resolved((*entry.read(config), *head.overrides)), head, config)


def _headed(spec: ModelSpec, head: Head, config: Config) -> ModelSpec:
    stacks = tuple(s for s in spec.stacks if head.stacks is None or s.name in head.stacks)
    return replace(spec, heads=head.heads(config), stacks=stacks)


# A composition takes 0.24 s, and an export asks for the same words once for each class of its family.
@lru_cache(maxsize=16)
def _resolved(overrides: tuple[str, ...]) -> ModelSpec:
    # Deferred: compose imports Hydra, 0.16 s, and describe() refuses most files before it is needed.
    from llmlab.config.compose import compose

    return layout.resolve(compose(overrides, strict=False), roles=())


def rename(about: Description, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Older names in the file made the present ones, a prefix of the class's own that of the others, and a head that is
    tied to a table that is not there made the table.
    """
    entry, head, out = about.entry, about.head, {}
    for name, tensor in tensors.items():
        for pattern, replacement in entry.rename.items():
            name = re.sub(pattern, replacement, name)
        if head.prefix and name.startswith(head.prefix):
            name = entry.prefix + name.removeprefix(head.prefix)
        out[name] = tensor
    # safetensors refuses shared memory, so that a writer keeps one of two tied names: it may be the head's.
    if about.full.get("tie_word_embeddings") and entry.head_key in out and not set(_tables(entry)) & set(out):
        assert entry.embed_key is not None and entry.head_key is not None
        out[entry.embed_key] = out.pop(entry.head_key)
    return out


def _tables(entry: Entry) -> list[str]:
    """Names that the token table may have in the file, with and without the prefix of the base model."""
    rules = [rule for rule in entry.rules if rule.ours[0].endswith("embedding.table.weight")]
    names = [entry.embed_key or "", *(name for rule in rules for name in (*rule.theirs, *rule.aliases))]
    return list(dict.fromkeys([*names, *(name.removeprefix(entry.prefix) for name in names)]))


def _decide_tie(entry: Entry, config: Config, tensors: dict[str, Tensor]) -> Config:
    """Decides by what the file holds: a head that differs from the token table is not tied, whatever config.json says."""
    if entry.head_key is None or entry.embed_key is None:
        return config
    config = {**config, STATED: config.get("tie_word_embeddings", False)}
    if entry.always_tied and tensors:  # of a bare config.json nothing else can decide
        config["tie_word_embeddings"] = True
    embed = next((tensors[name] for name in _tables(entry) if name in tensors), None)
    head = tensors.get(entry.head_key)
    # 20 ms for the two tables of GPT-2: cheap beside reading them.
    if head is not None and embed is not None and not (head.shape == embed.shape and torch.equal(head, embed)):
        return {**config, "tie_word_embeddings": False}
    return config


def fill(
    model: Model, entry: Entry, tensors: dict[str, Tensor], folder: Path
) -> tuple[dict[str, torch.dtype], frozenset[str], list[str]]:
    """Copy every tensor to its place. Returns the dtypes in the file by our names, which of its tensors were read, and
    which were ignored.
    """
    # state_dict() gives detached tensors of the same memory, so that copy_ needs no no_grad.
    ours = model.state_dict()
    shapes = {name: tensor.shape for name, tensor in ours.items()}
    rules = expand(entry.rules, shapes, model.spec)
    fixed = entry.fixed(model.spec) if entry.fixed else {}
    in_file = _with_prefix(entry, [*rules, Rule((), tuple(fixed))], tensors)
    dtypes: dict[str, torch.dtype] = {}
    used = _checked(fixed, in_file, folder)
    for rule in rules:
        # Several rules may fill one tensor, one for each layout that files have: the first that finds its tensors does.
        if any(name in dtypes for name in rule.ours) or not all(name in in_file for name in rule.theirs):
            continue
        for name in rule.theirs:
            if in_file[name].dtype not in FLOATS:
                kind = str(in_file[name].dtype).removeprefix("torch.")
                raise UserError(
                    f"{folder}: {name} holds {kind}, which is not implemented; give the weights unquantised"
                )
        try:
            values = rule.load([in_file[name] for name in rule.theirs], [shapes[name] for name in rule.ours])
        # torch.stack and split raise it for shapes that don't fit; the message below names the tensor.
        except RuntimeError:
            values = []
        for name, value in itertools.zip_longest(rule.ours, values):
            if value is None or value.shape != shapes[name]:
                wrong = {str(tuple(in_file[n].shape)) for n in rule.theirs}
                raise UserError(
                    f"{folder}: {rule.theirs[0]} has shape {' or '.join(sorted(wrong))}, "
                    f"but {name} needs {tuple(shapes[name])}"
                )
            ours[name].copy_(value)
            dtypes[name] = value.dtype
        again = [name for name in rule.aliases if name in in_file]
        for name in again:
            # Aliases are compared in the second pass only: meta tensors have no values.
            if not (in_file[name].is_meta or torch.equal(in_file[name], in_file[rule.theirs[0]])):
                raise UserError(f"{folder}: {name} differs from {rule.theirs[0]}, which it should be")
        used |= {*rule.theirs, *rule.copies, *again}
    for name in set(entry.optional) & set(ours) - set(dtypes):
        dtypes[name] = ours[name].zero_().dtype
    missing = [name for name in ours if name not in dtypes]
    if missing:
        wanted = next((rule.theirs[0] for rule in rules if missing[0] in rule.ours), missing[0])
        raise UserError(
            f"{folder}: {wanted} is missing" + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    left = [name for name in in_file if name not in used]
    extra = _layers_beyond(model, entry)
    ignored = [
        name for name in left if name == entry.head_key or any(re.search(p, name) for p in entry.ignore) or extra(name)
    ]
    unknown = sorted(set(left) - set(ignored))
    if unknown:
        raise UserError(
            f"{folder}: {unknown[0]} has no place in this model"
            + (f", nor have {len(unknown) - 1} more" if len(unknown) > 1 else "")
        )
    return dtypes, frozenset(used), sorted(ignored)


def _checked(fixed: dict[str, Tensor], in_file: dict[str, Tensor], folder: Path) -> set[str]:
    """Names of the tensors that follow from the sizes and are in the file. UserError if one has other values."""
    used = {name for name in fixed if name in in_file}
    for name in sorted(used):
        # bfloat16 keeps 8 bits: a sine is off by up to 2**-9.
        there, rounding = in_file[name], 1e-6 if in_file[name].dtype == torch.float32 else 1e-2
        if there.shape != fixed[name].shape:
            raise UserError(
                f"{folder}: {name} has shape {tuple(there.shape)}, but {tuple(fixed[name].shape)} is needed"
            )
        if not there.is_meta and (there.float() - fixed[name]).abs().max() > rounding:
            raise UserError(f"{folder}: {name} has values of its own, but it is computed here")
    return used


def _layers_beyond(model: Model, entry: Entry) -> Callable[[str], bool]:
    """A test on tensor names: is it of a layer past num_hidden_layers that the entry leaves out?"""
    n = len(model.spec.stacks[-1].layers)

    def beyond(name: str) -> bool:
        # DeepSeek-V3's file has layer 61 for multi-token prediction, which transformers names
        # in _keys_to_ignore_on_load_unexpected.
        found = re.match(r"model\.layers\.(\d+)\.", name)
        return entry.extra_layers and found is not None and int(found[1]) >= n

    return beyond


def _with_prefix(entry: Entry, rules: list[Rule], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A base model's tensors may lack the prefix that they have inside of a class with a head."""
    if not entry.prefix or any(name.startswith(entry.prefix) for name in tensors):
        return tensors
    # Only names that become one of ours: a head's lies outside of the base model and keeps its name.
    wanted = {name for rule in rules for name in (*rule.theirs, *rule.copies, *rule.aliases)}
    return {(entry.prefix + n if entry.prefix + n in wanted else n): t for n, t in tensors.items()}
