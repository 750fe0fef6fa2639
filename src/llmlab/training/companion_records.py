"""Companions in a run's record: what is said of them, and how a run that goes on, or is measured, finds them again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from llmlab.config import init_from, learned
from llmlab.config.companions import KEY, declared
from llmlab.config.composed import Declared
from llmlab.errors import UserError
from llmlab.json_files import check_shape
from llmlab.model import build, flops
from llmlab.model.model import Model
from llmlab.runs import checkpoint, record
from llmlab.runs import folder as run_folder
from llmlab.training.companions import Companion, adapter_fingerprint, fingerprint, load

if TYPE_CHECKING:
    from omegaconf import DictConfig


def reopened(
    folder: Path, fields: Mapping[str, Any], moved: Mapping[str, str] | None, *, begins: bool
) -> dict[str, Companion]:
    """The companions of a run that goes on, of which `fields` is the record. UserError if a finished model that is needed
    is not what it was.

    moved: where finished models lie now, by role; None where nobody can say so. begins: no checkpoint has the weights of
    those that train.
    """
    companions = {}
    check_shape(dict(fields), Record, str(folder / record.NAME))
    for role, about in (fields.get(KEY) or {}).items():
        spec = run_folder.companion(folder, role)
        heads = {name: part.name for name, part in spec.heads.items()}
        known = {name: about.get(name, False) for name in ("copies", "judges", "warm")}
        begun_as = about.get("heads_from", {})
        of_role = Declared(role, heads, about["trains"], tuple(about["shares"]), heads_from=begun_as, **known)
        source, weights, sha256 = about["source"], about["weights"], about["sha256"]
        path = None if weights is None else Path(weights)
        # A companion that trains has its weights in the run's own checkpoint, once there is one.
        if path is not None and (begins or not of_role.trains):
            if moved is not None and role in moved:
                source, path = (
                    init_from.absolute(moved[role]),
                    run_folder.start_of(moved[role], tokenizer=False).absolute(),
                )
            _unchanged(role, source, path, sha256, "bring it back" if moved is None else _elsewhere(role))
        elif of_role.trains and not begins:
            path = None
        adapter = about.get("adapter")
        if adapter is not None:
            _adapter_unchanged(Path(adapter["path"]), adapter["sha256"])
        beside = None if adapter is None else (Path(adapter["path"]), adapter["sha256"])
        companions[role] = Companion(of_role, spec, tuple(about["words"]), source, path, sha256, adapter=beside)
    return companions


def places(fields: Mapping[str, Any], companions: Mapping[str, Companion]) -> dict[str, Any]:
    """The field of a record that says where finished models lie now."""
    if not companions:
        return {}
    at = {
        role: {"source": c.source, "weights": str(c.weights)} for role, c in companions.items() if c.weights is not None
    }
    return {KEY: {role: {**about, **at.get(role, {})} for role, about in fields[KEY].items()}}


def _elsewhere(role: str) -> str:
    return f"say where it lies now with {KEY}.{role}=PATH"


def _unchanged(role: str, source: str, path: Path, sha256: str, fix: str) -> None:
    if not path.is_dir():
        raise UserError(f"{KEY}.{role}={source}: {path} is gone, whose weights the run works with; {fix}")
    try:
        now = fingerprint(path)
    except UserError as e:
        raise UserError(f"{KEY}.{role}={source}: {e}; {fix}") from None
    if now != sha256:
        raise UserError(
            f"{KEY}.{role}={source}: the weights in {path} are not those that the run began with "
            f"(sha256 {sha256[:12]}); {fix}"
        )


def _adapter_unchanged(path: Path, sha256: str) -> None:
    what = f"init_from.adapter={path}"
    try:
        now = adapter_fingerprint(path)
    except OSError:
        raise UserError(f"{what}: it is gone, and the run works with the model as it began; bring it back") from None
    if now != sha256:
        raise UserError(
            f"{what}: its tensors are not those that the run began with (sha256 {sha256[:12]}); bring them back"
        )


class RecordedAdapter(TypedDict):
    path: str
    sha256: str


class Recorded(TypedDict):
    """A companion in a run's record."""

    trains: bool
    shares: list[str]
    words: list[str]
    source: str | None
    weights: str | None
    sha256: str | None
    copies: NotRequired[bool]
    judges: NotRequired[bool]
    warm: NotRequired[bool]
    heads_from: NotRequired[dict[str, str]]
    adapter: NotRequired[RecordedAdapter]


class Record(TypedDict):
    models: NotRequired[dict[str, Recorded]]


def fields(companions: Mapping[str, Companion], models: Mapping[str, Model]) -> dict[str, Any]:
    """The field `models` of a run's record."""
    by_role = {}
    for role, c in companions.items():
        counts = flops.count_parameters(models[role])
        by_role[role] = {
            "family": c.spec.family,
            "parameters": {"total": counts.total, "active": counts.active},  # without what it shares
            "trains": c.trains,
            "shares": [name for name in c.declared.shares if name != "position" or _shares_position(models[role])],
            "words": list(c.words),
            "source": c.source,
            "weights": None if c.weights is None else str(c.weights),
            "sha256": c.sha256,
            **{name: True for name in ("copies", "judges", "warm") if getattr(c.declared, name)},
            **({"heads_from": dict(c.declared.heads_from)} if c.declared.heads_from else {}),
            **({"adapter": {"path": str(c.adapter[0]), "sha256": c.adapter[1]}} if c.adapter else {}),
        }
    return by_role


def _shares_position(model: Model) -> bool:
    # A role may share positions that not both models have: one of rope has no table.
    return model.all_stacks()[0].shared_position is not None


def lines(companions: Mapping[str, Companion], models: Mapping[str, Model]) -> list[str]:
    """Lines that a run begins with, one for each companion."""
    texts = []
    for role, about in fields(companions, models).items():
        shared = f", beside the {' and '.join(about['shares'])} that it shares" if about["shares"] else ""
        how = "trained" if about["trains"] else "frozen"
        origin = about["source"] or (" ".join(about["words"]) or "the run's own model")
        if companions[role].declared.copies and about["source"] in (None, "init_from"):
            origin = "the model as it begins"
        origin += ", begins with that of init_from" if companions[role].start is not None else ""
        origin += ", begins with init_from" if companions[role].trunk is not None else ""
        texts.append(f"{role}: {about['family']}, {about['parameters']['total']:,} parameters{shared}, {how}, {origin}")
    return texts


def finished(path: Path, home: Path, cfg: DictConfig, trained: Model) -> dict[str, Model]:
    """The companions of a run as its checkpoint `path` has them, in evaluation, beside the trained model. UserError where one
    is not to be had."""
    roles = declared(cfg)
    if not roles:
        return {}
    if not (home / record.NAME).is_file() or not record.read(home).get(KEY):
        raise UserError(
            f"{home}: {learned.typed(cfg)} works with the role {next(iter(roles))} too, whose model an export "
            "does not have; give the folder of the run"
        )
    models = {}
    for role, companion in reopened(home, record.read(home), None, begins=False).items():
        model = companion.assemble(trained)
        build.materialise(model)
        if companion.trains:
            load(model, checkpoint.read_weights(path, role), f"checkpoint {path}: {KEY}.{role}")
        else:
            companion.fill(model, cfg.seed)
        models[role] = model.eval()
    return models
