"""Comparison of two model descriptions: do they compute the same function, and if not, where do they differ first?"""

from __future__ import annotations

from torch import nn

from llmlab.config.spec import ModelSpec, PartSpec
from llmlab.model.build import assemble
from llmlab.slots import Score

SIZES = ("norm_eps", "token_types", "tie_embeddings", "logit_scale", "logit_softcap")
ATTENTION = ("qk_norm", "sink", "clip_qkv")
MOE = ("per_token", "renormalise", "scale", "shared_gate")


def difference(spec: ModelSpec, back: ModelSpec) -> str | None:
    """The first part or size in which two models differ, as one would type it; None where they compute the same.

    What only training feels (dropout, balance losses, init) does not count.
    """
    ours, theirs = [s.name for s in spec.stacks], [s.name for s in back.stacks]
    if ours != theirs:
        return f"stacks {', '.join(ours)}"
    for a, b in zip(spec.stacks, back.stacks, strict=True):
        # Before the layers: ALBERT's are compared as they are stored, and the order says how often each runs.
        if a.execute != b.execute:
            return f"execute={list(a.execute)}"
        # An order is drawn with each sample, and a text without one is read both ways: a checkpoint is the same.
        if a.mask != b.mask and not (_reads_both_ways(a.mask) and _reads_both_ways(b.mask)):
            return f"mask={a.mask}"
        if not _alike(a.embedding, b.embedding):
            return f"embedding={a.embedding}"
        for x, y in zip(a.layers, b.layers, strict=True):
            for slot, part in x.parts.items():
                if not _alike(part, y.parts[slot]):
                    return f"{slot}={part}"
        if (a.cross_attention is None) != (b.cross_attention is None):
            return f"cross_attention={a.cross_attention}"
        if a.cross_attention and b.cross_attention and not _alike(a.cross_attention, b.cross_attention):
            return f"cross_attention={a.cross_attention}"
    for role, part in spec.heads.items():
        if role not in back.heads or not _alike(part, back.heads[role]):
            return f"heads.{role}={part}"
    return _sizes(spec, back) or _built(spec, back)


def _reads_both_ways(mask: PartSpec) -> bool:
    """True if a text that comes without an order sees all of itself."""
    return mask.attribute("pattern") == "full" or "rank" in mask.attribute("needs")


def _alike(a: PartSpec, b: PartSpec) -> bool:
    """The same part with the same options. One that is None follows the sizes; how many heads share keys, shapes tell."""
    # mha, mqa and gqa are one class (`share` says how many heads have a key), and a
    # file has the number of key heads alone.
    skip = {"share"} if a.slot == "attention" and "share" in a.options and "share" in b.options else set()
    if a.name != b.name and not skip:
        return False
    return all(
        a.options[k] == b.options.get(k)
        for k in a.options
        if k not in skip and None not in (a.options[k], b.options.get(k))
    )


def _sizes(spec: ModelSpec, back: ModelSpec) -> str | None:
    pairs = [
        ("model", SIZES, spec.sizes, back.sizes),
        ("model.attention", ATTENTION, spec.sizes.attention, back.sizes.attention),
    ]
    # A model without experts still has the sizes of some, at their defaults, which a file has no place for.
    if any(layer.parts["moe"].name != "none" for stack in spec.stacks for layer in stack.layers):
        pairs.append(("model.moe", MOE, spec.sizes.moe, back.sizes.moe))
    for prefix, names, a, b in pairs:
        for name in names:
            if getattr(a, name) != getattr(b, name):
                return f"{prefix}.{name}={getattr(a, name)}"
    return None


def _built(spec: ModelSpec, back: ModelSpec) -> str | None:
    """Differences that show only once the parts are built: tensor shapes, and the scale and soft cap of the scores."""
    # On the meta device: 36 ms for the 32 layers of a 7B.
    ours, theirs = assemble(spec), assemble(back)
    shapes, others = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (ours, theirs))
    for name in (*shapes, *others):
        if shapes.get(name) != others.get(name):
            return f"{_part_of(spec, name)} ({name} would be {others.get(name)}, but is {shapes.get(name)})"
    for a, b in zip(_scores(ours), _scores(theirs), strict=True):
        # config.json holds scale**-2 (query_pre_attn_scalar), so that a scale comes back with a rounding.
        if abs(a.scale - b.scale) > 1e-12 * abs(a.scale):
            return f"model.attention.scale={a.scale}"
        if a.softcap != b.softcap:
            return f"model.attention.softcap={a.softcap}"
    return None


def _scores(model: nn.Module) -> list[Score]:
    return [score for m in model.modules() if isinstance(score := getattr(m, "score", None), Score)]


def _part_of(spec: ModelSpec, tensor: str) -> str:
    """The choice that a tensor belongs to."""
    words = tensor.split(".")
    if words[2:3] == ["layers"] and words[4] in ("attention", "ffn"):
        layer = next(s for s in spec.stacks if s.name == words[1]).layers[int(words[3])]
        return f"{words[4]}={layer.parts[words[4]]}"
    return f"{words[0]} {words[1]}"
