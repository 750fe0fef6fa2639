"""From a composed config to what is built: which part stands in which slot of which layer, and why.

Plain dataclasses, no torch. The order in which a slot of a layer is resolved, the last wins: the top
level, the stack's, the kind's, what was typed (of two typed choices the narrower).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmlab import registry
from llmlab.config import learned
from llmlab.config.fit import article, check_objective, words
from llmlab.config.spec import LayerSpec, ModelSpec, PartSpec, StackSpec
from llmlab.errors import UserError
from llmlab.sizes import AttentionTraits, FFNTraits, MoETraits, Sizes, divisors_shown
from llmlab.slot_names import LAYER_SLOTS, STACK_SIZES

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.composed import Composed


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def resolve(
    composed: Composed,
    *,
    vocabulary: int | None = None,
    roles: tuple[str, ...] | None = None,
    classes: int | None = None,
    companion: Mapping[str, str] | None = None,
) -> ModelSpec:
    """The model that a config asks for.

    vocabulary: ids that the tokenizer uses (the model's table is rounded up to a multiple of 64); None: the size that
    the config states. roles: the heads to build; None: those that the objective names. companion: the objective's heads
    of another model that it works with; None: the model is the one that it trains. classes: of labelled data; None: as many
    as the config states.
    """
    from omegaconf import OmegaConf

    cfg, typed = composed.cfg, {(t.group, t.package): t for t in composed.typed}
    # Plain values: a read of an OmegaConf node takes 12 microseconds, one that follows from others a millisecond, and nothing
    # that is built is to depend on it.
    model: Any = OmegaConf.to_container(cfg.model, resolve=True)
    sizes = _sizes(cfg, model, vocabulary)
    objective = needed_part(learned.node(cfg), learned.slot(cfg))
    notes: list[str] = []

    default_mask = _part(cfg.mask, "mask")
    if default_mask is None:
        default_mask = PartSpec("mask", objective.attribute("mask"), {})
    names = list(cfg.stacks) or ["main"]
    stacks = tuple(
        _stack(cfg, name, _sizes(cfg, model, vocabulary, name), default_mask, typed, notes) for name in names
    )
    if len(stacks) > 1:
        source = stacks[0].sizes.dim
        # A cross-attention's keys are linears over the encoder's width, which may be another than its own.
        stacks = (stacks[0], *(replace(s, sizes=s.sizes.but(source_dim=source)) for s in stacks[1:]))

    wanted = objective.attribute("heads") if companion is None else companion
    given = {role: _part(node, "head") for role, node in cfg.heads.items()}
    roles = tuple(wanted) if roles is None else roles
    heads = {role: given.get(role) or _default("head", wanted.get(role, "lm")) for role in roles}
    if classes is not None:
        heads = _with_classes(heads, classes, composed.keys)

    spec = ModelSpec(
        family=cfg.model.family,
        # A head reads the last stack, which may be of another width than the model.
        sizes=sizes.but(**{k: getattr(stacks[-1].sizes, k) for k in ("dim", "causal", "sees_all")}),
        stacks=stacks,
        heads=heads,
        kernel=needed_part(cfg.kernel, "kernel"),
        init=needed_part(cfg.init, "init"),
        adapter=_part(cfg.adapter, "adapter"),
        # Layers of one kind say the same.
        notes=tuple(dict.fromkeys(notes)),
    )
    check_objective(spec, objective, companion)
    chosen = typed.get((objective.slot, ""))
    if chosen is not None and not chosen.kept:
        mask, trained = spec.stacks[-1].mask.name, f"{spec.family} is trained as {article(words((spec.topology,)))}"
        if mask == objective.attribute("mask"):  # another was typed
            said = f"{objective.slot}={objective.name} brings mask={mask}: {trained}"
            spec = replace(spec, notes=(*spec.notes, said))
    return spec


def _with_classes(heads: Mapping[str, PartSpec], classes: int, typed: frozenset[str]) -> dict[str, PartSpec]:
    """Heads with as many classes as the data has. UserError where another number was typed."""
    found = {}
    for role, part in heads.items():
        own = part.options.get("n_classes")
        if own not in (None, classes):
            if f"heads.{role}.n_classes" in typed:
                raise UserError(f"heads.{role}.n_classes={own}, but the data has {classes} classes; leave it out")
            part = replace(part, options={**part.options, "n_classes": classes})
        found[role] = part
    return found


def with_vocabulary(composed: Composed, ids: int, classes: int | None = None) -> ModelSpec:
    """The model that a config asks for, for a tokenizer of so many ids and data of so many classes, from what was resolved as
    it was composed."""
    spec, objective = composed.spec, needed_part(composed.cfg.objective, "objective")
    if classes is not None and (wanted := objective.attribute("classes")) not in (0, classes):
        raise UserError(f"objective={objective.name} reads {wanted} classes, but the data has {classes:,}")
    if spec is None:
        return resolve(composed, vocabulary=ids, classes=classes)
    if classes is not None:
        spec = replace(spec, heads=_with_classes(spec.heads, classes, composed.keys))
    size = _vocab_size(composed.cfg, ids)
    stacks = tuple(replace(s, sizes=s.sizes.but(vocab_size=size)) for s in spec.stacks)
    return replace(spec, sizes=spec.sizes.but(vocab_size=size), stacks=stacks)


def _vocab_size(cfg: DictConfig, ids: int | None) -> int:
    """Rows of the table of tokens: what was stated, else the ids of the tokenizer rounded up to a multiple of 64."""
    stated = cfg.model.vocab_size
    if stated is None:
        # As nanoGPT pads GPT-2's 50,257 to 50,304: products of matrices are faster at multiples of 64.
        return round_up(ids or cfg.tokenizer.vocab_size, 64)
    if ids is not None and stated < ids:
        raise UserError(
            f"model.vocab_size={stated} is smaller than the tokenizer's {ids} tokens; "
            f"leave it out (it follows the tokenizer) or set at least {ids}"
        )
    return int(stated)


def _default(slot: str, name: str) -> PartSpec:
    entry = registry.index()[slot, name]
    return PartSpec(slot, name, {k: o.default for k, o in entry.options.items()})


def needed_part(node: DictConfig | None, slot: str) -> PartSpec:
    part = _part(node, slot)
    if part is None:
        raise UserError(f"{slot} is missing: a model needs one; choose {slot}=NAME")
    return part


def _part(node: DictConfig | None, slot: str) -> PartSpec | None:
    if node is None:
        return None
    from omegaconf import OmegaConf

    # Interpolations are worked out here, as long as the node has its parents.
    options: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
    name = options.pop("_part_")
    # `_part_` and its like are the config's own, no arguments of the part.
    options = {str(k): v for k, v in options.items() if not str(k).startswith("_")}
    return PartSpec(slot, name, options)


def _sizes(cfg: DictConfig, model: Mapping[str, Any], vocabulary: int | None, stack: str | None = None) -> Sizes:
    """The sizes of the model, or of a stack, which may have some of its own. model: cfg.model as plain values."""
    m: dict[str, Any] = copy.deepcopy({**model})
    # Parts are to go by sizes and traits, never by whose model it is.
    m.pop("family")
    at = dict.fromkeys(STACK_SIZES, "model")
    for size in STACK_SIZES if stack in cfg.stacks else ():
        if (value := cfg.stacks[stack][size]) is not None:
            if value < 1:
                raise UserError(f"stacks.{stack}.{size} must be at least 1, but is {value}")
            m[size], at[size] = value, f"stacks.{stack}"
    if m["head_dim"] is None:
        if m["dim"] % m["n_heads"]:
            raise UserError(
                f"{at['n_heads']}.n_heads={m['n_heads']} does not divide {at['dim']}.dim={m['dim']}; "
                f"choose one of {divisors_shown(m['dim'])} or set model.head_dim"
            )
        m["head_dim"] = m["dim"] // m["n_heads"]
    if m["n_kv_heads"] is not None and m["n_heads"] % m["n_kv_heads"]:
        raise UserError(
            f"{at['n_kv_heads']}.n_kv_heads={m['n_kv_heads']} does not divide {at['n_heads']}.n_heads={m['n_heads']}; "
            f"choose one of {divisors_shown(m['n_heads'])}"
        )
    if m["ffn_dim"] is None:
        # The ratio of the Transformer (Vaswani et al. 2017, section 3.3: 2048 to 512) and of GPT.
        m["ffn_dim"] = 4 * m["dim"]
    if m["max_positions"] is None:
        m["max_positions"] = cfg.data.seq_len
    m["vocab_size"] = _vocab_size(cfg, vocabulary)
    moe = m.pop("moe")
    if moe["ffn_dim"] is None:
        # The experts that a token visits are as wide together as the dense layer, so that its FLOPs are the same.
        moe["ffn_dim"] = max(8, round_up(m["ffn_dim"] // moe["per_token"], 8))
    if moe["per_token"] > moe["n_experts"]:
        raise UserError(f"model.moe.per_token={moe['per_token']} is more than model.moe.n_experts={moe['n_experts']}")
    traits: dict[str, Any] = {
        "attention": AttentionTraits(**m.pop("attention")),
        "ffn": FFNTraits(**m.pop("ffn")),
        "moe": MoETraits(**moe),
    }
    return Sizes(**m, **traits)


def kinds_of(layers: DictConfig, n_layers: int) -> list[str]:
    """first + cycle + last as one list of n_layers kinds; "" where none is named."""
    first, cycle, last = list(layers.first), list(layers.cycle), list(layers.last)
    if not (first or cycle or last):
        return [""] * n_layers
    middle = n_layers - len(first) - len(last)
    if middle < 0 or (middle and not cycle):
        raise UserError(
            f"layers.first has {len(first)} and layers.last {len(last)} kinds, which does not make model.n_layers={n_layers}"
            + ("; name the kinds in between in layers.cycle" if middle > 0 else "")
        )
    return first + [cycle[i % len(cycle)] for i in range(middle)] + last


def _stack(cfg: DictConfig, name: str, sizes: Sizes, mask: PartSpec, typed: dict, notes: list[str]) -> StackSpec:
    stack = cfg.stacks.get(name)
    own = stack is not None
    execute = list(stack.execute if own and stack.execute else cfg.execute)
    n_executed = stack.n_layers if own and stack.n_layers is not None else sizes.n_layers
    if n_executed < 1:
        raise UserError(
            f"model.n_layers={sizes.n_layers} leaves stacks.{name}.n_layers={n_executed}; each stack needs one"
        )
    if execute:
        stored = max(execute, default=-1) + 1
        if min(execute) < 0 or set(execute) != set(range(stored)):
            raise UserError(f"execute={execute} must name every layer from 0 to its largest at least once")
        if len(execute) != n_executed:
            notes.append(f"execute runs {len(execute)} layers; model.n_layers={n_executed} is not used")
    else:
        execute, stored = list(range(n_executed)), n_executed
    named = bool(own and (stack.layers.first or stack.layers.cycle or stack.layers.last))
    kinds = kinds_of(stack.layers if named else cfg.layers, stored)
    # Each once, in the order of the layers, so that a message is the same each time.
    for kind in dict.fromkeys(kinds):
        if kind and kind not in cfg.kinds:
            raise UserError(
                f"layers names the kind {kind!r}, which kinds does not have; it has {', '.join(cfg.kinds) or 'none'}"
            )
    for kind in cfg.kinds:
        if kind not in kinds:
            notes.append(f"no layer of the {len(kinds)} is of kind {kind!r}")
    if own and stack.mask is not None:
        wide, own_mask = typed.get(("mask", "")), needed_part(stack.mask, "mask")
        if wide is None or wide.kept or ("mask", f"stacks.{name}") in typed:
            mask = own_mask
        elif mask != own_mask:
            notes.append(f"mask={mask.name} as typed displaces {own_mask} of the {name} layers")
    pattern = mask.attribute("pattern")
    causal, sees_all = pattern == "causal", pattern == "full"
    layers = tuple(_layer(cfg, name if own else None, kind, typed, notes) for kind in kinds)
    embedding = needed_part(stack.embedding if own and stack.embedding is not None else cfg.embedding, "embedding")
    # A slot's part in a place of another name: the registry knows it as an attention.
    cross = _part(stack.cross_attention, "attention") if own else None
    sizes = sizes.but(n_layers=len(execute), stack=name, causal=causal, sees_all=sees_all)
    return StackSpec(
        name, sizes, layers, tuple(execute), mask, embedding, cross, stack.shared_embedding if own else True
    )


def _layer(cfg: DictConfig, stack: str | None, kind: str, typed: dict, notes: list[str]) -> LayerSpec:
    parts: dict[str, PartSpec] = {}
    displaced: dict[str, str] = {}
    for slot in LAYER_SLOTS:
        places = [("", cfg[slot])]
        if stack is not None:
            places.append((f"stacks.{stack}", cfg.stacks[stack][slot]))
        if kind:
            places.append((f"kinds.{kind}", cfg.kinds[kind][slot]))
        named = [(place, node) for place, node in places if node is not None]
        by_hand = [(place, node) for place, node in named if (slot, place) in typed]
        if all(typed[slot, place].kept for place, _ in by_hand):
            by_hand = []
        _, node = (by_hand or named or [("", None)])[-1]
        parts[slot] = needed_part(node, slot)
        if by_hand and named[-1][1] is not node:
            displaced[slot] = str(_part(named[-1][1], slot))
            where = f"{kind or stack} layers"
            notes.append(f"{slot}={parts[slot].name} as typed displaces {displaced[slot]} of the {where}")
    return LayerSpec(kind, parts, displaced)
