"""An adapter in PEFT's file format (LoRA, DoRA) as one of ours: what it makes of a config, and its tensors by our paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from torch import Tensor

from llmlab.config.spec import ModelSpec, PartSpec
from llmlab.errors import UserError
from llmlab.files import expanded
from llmlab.hub.adapter_names import CONFIG, NAMES, PREFIX, WEIGHTS, Place, places
from llmlab.hub.files import explained, safe_open
from llmlab.json_files import read_json, short_repr
from llmlab.model import adapters, build, finite
from llmlab.modules import Linear

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

KEY = "init_from.adapter"
ROLES = ("q", "k", "v", "out", "ffn_in", "ffn_out")
# Keys that are held, and those that change no number of an adapter whose tensors are there.
HELD = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules")
NOTHING = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("fan_in_fan_out", "exclude_modules", "layers_pattern", "megatron_core", "qalora_group_size"),
)
# Those that leave the base as it is; pissa, olora, corda, loftq and their like change it, and the file does not say how.
PLAIN_INIT = (True, False, None, "gaussian", "orthogonal", "eva")


class Settings(TypedDict):
    peft_type: str
    r: int
    lora_alpha: int | float
    lora_dropout: NotRequired[int | float]
    use_rslora: NotRequired[bool]
    use_dora: NotRequired[bool]


def overrides(folder: str, spec: ModelSpec, typed: Sequence[Override]) -> list[str]:
    """The adapter of a folder as it is typed for a model of `spec`. UserError in a line for what it has that can't be held, and
    for a typed option that contradicts it."""
    at = expanded(folder)
    settings = _settings(at)
    placed, linears = _linears(spec)
    file = at / WEIGHTS
    shapes = _shapes(file)
    by_linear = _by_linear(shapes, placed, file)
    rank = settings["r"]
    decomposed = settings.get("use_dora", False)
    names = [n for n in NAMES if decomposed or n != "magnitude"]
    for linear, own in by_linear.items():
        module = linears[linear]
        wanted = {
            "a.weight": [rank, module.in_features],
            "b.weight": [module.out_features, rank],
            "magnitude": [module.out_features],
        }
        for name in names:
            if own.get(name) != wanted[name]:
                there = f"is {own[name]}" if name in own else "is not there"
                raise UserError(
                    f"{file}: {NAMES[name]} of {placed[linear].theirs} must be {wanted[name]} for this model and r={rank}, "
                    f"but {there}"
                )
        if extra := [n for n in own if n not in names]:
            raise UserError(
                f"{file}: {placed[linear].theirs} has a {NAMES[extra[0]]}, but {CONFIG} says use_dora=false"
            )
    targets = _targets(by_linear, placed, linears, file)
    found = {
        "rank": rank,
        "alpha": float(settings["lora_alpha"]),
        "dropout": float(settings.get("lora_dropout", 0.0)),
        "rank_stabilised": settings.get("use_rslora", False),
        "targets": targets,
    }
    return _beside_typed("dora" if decomposed else "lora", found, typed, folder)


def _beside_typed(part: str, found: Mapping[str, object], typed: Sequence[Override], folder: str) -> list[str]:
    words = {"adapter": part, **{f"adapter.{key}": value for key, value in found.items()}}
    for o in typed:
        key = o.key_or_group
        # Dropout changes what is learnt next, not what the adapter computes.
        if key == "adapter.dropout" and not o.is_delete():
            del words[key]
        elif key in words and (o.is_delete() or _plain(o.value()) != words[key]):
            raise UserError(
                f"{o.input_line} contradicts {KEY}={folder}, which has {key}={_text(words[key])}; leave it out"
            )
    return [f"{key}={_text(value)}" for key, value in words.items()]


def _plain(value: object) -> object:
    return sorted(map(str, value), key=ROLES.index) if isinstance(value, list) and set(value) <= set(ROLES) else value


def _text(value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def tensors(folder: str | Path, spec: ModelSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter by our paths, for the base whose whole weights are `weights`."""
    file = expanded(str(folder)) / WEIGHTS
    placed, _ = _linears(spec)
    with explained(file), safe_open(file) as f:
        theirs = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  # safe_open is no mapping
    finite.check(theirs, file)
    found = {}
    for name, tensor in theirs.items():
        linear, own = _ours(name, placed, file)
        tensor = tensor.float()
        if own == "magnitude":
            # Theirs is the norm itself, of which ours is what it has more than that of the frozen row.
            tensor = tensor.flatten() - weights[f"{linear}.weight"].float().norm(dim=1)
        found[f"{linear}{adapters.MARK}{own}"] = tensor
    return found


def _settings(folder: Path) -> Settings:
    if not folder.is_dir():
        raise UserError(f"{KEY}={folder}: there is no such folder")
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(f"{KEY}={folder}: there is no {CONFIG} in it; PEFT's save_pretrained writes one")
    plain: dict[str, Any] = read_json(file, dict)
    if plain.get("peft_type") != "LORA":
        raise UserError(
            f"{file}: peft_type={short_repr(plain.get('peft_type'), 40)} can't be read; LORA can, DoRA with it"
        )
    for key, value in plain.items():
        if key in HELD or key in NOTHING or value in (None, False, 0) or value in ("none", {}, []):
            continue
        if key == "init_lora_weights" and value in PLAIN_INIT:
            continue
        raise UserError(f"{file}: {key}={short_repr(value, 60)} is nothing that adapter=lora or dora can hold")
    settings: Settings = read_json(file, Settings)
    if settings["r"] < 1:
        raise UserError(f"{file}: r must be at least 1, but is {settings['r']}")
    if not (folder / WEIGHTS).is_file():
        if any(folder.glob("*.bin")):
            raise UserError(
                f"{folder} holds pickled weights (*.bin), which llmlab never reads; PEFT's "
                "save_pretrained(safe_serialization=True) writes safetensors"
            )
        raise UserError(f"{KEY}={folder}: there is no {WEIGHTS} in it")
    return settings


def _shapes(file: Path) -> dict[str, list[int]]:
    with explained(file), safe_open(file) as f:
        return {name: list(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118


def _linears(spec: ModelSpec) -> tuple[dict[str, Place], dict[str, Linear]]:
    """(the place of each linear in the family's checkpoints, the linear), by path."""
    base = adapters.without(spec)
    model = build.assemble(base)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    # Names of layers are the same whatever is learnt: a reward model's class is another, with a prefix of its own.
    _, placed = places(replace(base, heads={"tokens": PartSpec.with_defaults("head", "lm")}), shapes)
    linears = {path: m for path, m in model.named_modules() if isinstance(m, Linear) and m.role in ROLES}
    return {path: place for path, place in placed.items() if path in linears}, linears


def _ours(name: str, placed: Mapping[str, Place], file: Path) -> tuple[str, str]:
    """(the path of a linear, the name of the adapter's tensor) that a tensor of a file is."""
    # PEFT before 0.12 wrote `lora_magnitude_vector` bare, and one version with `.weight`.
    known = name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
    for own, theirs in NAMES.items():
        if known.startswith(PREFIX) and known.endswith(f".{theirs}"):
            base = known[len(PREFIX) : -len(theirs) - 1]
            there = [(linear, place) for linear, place in placed.items() if place.theirs == base]
            if len(there) == 1 and there[0][1].alone:
                return there[0][0], own
            if there:
                held = " and ".join(linear.rpartition(".")[2] for linear, _ in there)
                raise UserError(
                    f"{file}: {short_repr(name, 120)} adapts {held} as one, which are linears of their own here"
                )
            break
    raise UserError(f"{file}: {short_repr(name, 120)} is of no linear of this model that an adapter can be beside")


def _by_linear(
    shapes: Mapping[str, list[int]], placed: Mapping[str, Place], file: Path
) -> dict[str, dict[str, list[int]]]:
    found: dict[str, dict[str, list[int]]] = {}
    for name, shape in shapes.items():
        linear, own = _ours(name, placed, file)
        found.setdefault(linear, {})[own] = shape
    if not found:
        raise UserError(f"{file} holds no tensor")
    return found


def _targets(
    adapted: Mapping[str, object], placed: Mapping[str, Place], linears: Mapping[str, Linear], file: Path
) -> list[str]:
    """The roles of the adapted linears. UserError where not all linears of a role are."""
    roles = {linears[linear].role for linear in adapted}
    for linear, place in placed.items():
        role = linears[linear].role
        if role in roles and linear not in adapted:
            other = next(placed[a].theirs for a in adapted if linears[a].role == role)
            raise UserError(
                f"{file}: it adapts {other} but not {place.theirs}; linears of one role ({role}) are adapted all or none here"
            )
    return [role for role in ROLES if role in roles]
