"""Checks of weights: saved and loaded, drawn independently, tied where they should be."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, cast

import torch

from llmlab import attributes
from llmlab.check.subject import FIRST_ID, CheckFailed, NotApplicable, Subject
from llmlab.model import build, roles, serialise
from llmlab.model.model import Model
from llmlab.modules import Table
from llmlab.runs import checkpoint
from llmlab.seeds import key


@torch.no_grad()
def saved(subject: Subject) -> None:
    """A checkpoint, and the specification that lies beside it, give the same model back, bit for bit."""
    model, batch = subject.model, subject.batch()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / checkpoint.name(1)
        checkpoint.write(path, model.state_dict(), {})
        weights = checkpoint.read_weights(path)
    # Through JSON text, since that is how model.json keeps it: tuples become lists, and keys become strings.
    spec = serialise.from_dict(json.loads(json.dumps(serialise.to_dict(subject.spec))))
    again = build.build_model(spec, seed=2).eval()
    build.load(again, weights)
    want, got = model(batch), again(batch)
    if not torch.equal(got.hidden, want.hidden):
        raise CheckFailed("hidden states are others after the weights were saved and loaded")
    for role, out in want.heads.items():
        if not torch.equal(got.heads[role], out):
            raise CheckFailed(f"what the head {role} says is another after the weights were saved and loaded")


@torch.no_grad()
def drawn(subject: Subject) -> None:
    """Tensors begin with what their role's init draws for each from its own path; biases and buffers with 0.

    No two begin with the same random values, those of layers that are alike neither.
    """
    model, first = subject.fresh(), dict[tuple[float, ...], str]()
    _by_role(model)
    for name, tensor in model.named_parameters():
        values = tensor.flatten()[:16].double()
        if len(values.unique()) < len(values) or len(values) < 16:  # constants, as a norm's weight
            continue
        # Normed: two tensors drawn from one seed with other standard deviations are equal but for a factor.
        direction = tuple(round(v, 4) for v in (values / values.norm()).tolist())
        if direction in first:
            raise CheckFailed(f"{name} begins with the values of {first[direction]}")
        first[direction] = name


def _by_role(model: Model) -> None:
    init = model.spec.init.factory()()
    for path, module, name, parameter, role in roles.walk(model):
        want = torch.zeros(parameter.shape)
        if (constant := getattr(module, "constants", {}).get(name)) is not None:
            want.fill_(constant)
        elif name != "bias" and not name.endswith("_bias"):
            stack = path.split(".")[1] if path.startswith("stacks.") else None
            sizes: Any = model.sizes if stack is None else cast("Any", model.stacks[stack]).sizes
            sizes = sizes.but(gain=module.gain) if isinstance(module, Table) else sizes
            init.fill(want, role, sizes, torch.Generator().manual_seed(key(1, path)))
        if not torch.equal(parameter, want):
            raise CheckFailed(f"{path}, a tensor of role {role}, begins with other values than its role has")
    # What a token is spelled like is known before anything is drawn.
    spelled = {id(b) for m in model.modules() if hasattr(m, "spell") for b in m.buffers(recurse=False)}
    if wrong := [name for name, buffer in model.named_buffers() if id(buffer) not in spelled and buffer.any()]:
        raise CheckFailed(f"{wrong[0]}, which is not learnt, does not begin with 0")


@torch.no_grad()
def tied(subject: Subject) -> None:
    """The row of a token that is not in the text changes that token's logit if tables are tied, and nothing if they aren't."""
    model, batch = subject.fresh().eval(), subject.batch()
    if "tokens" not in model.heads:
        raise NotApplicable("it has no head for tokens")
    if not attributes.get(model.all_stacks()[0].embedding, "embedding", "table"):
        raise NotApplicable("its embedding has no table of tokens")
    token = FIRST_ID - 2  # no text of `random_ids` has it
    before = model(batch)
    model.all_stacks()[0].embedding.weight[token] += 1.0
    after = model(batch)
    if not torch.equal(before.hidden, after.hidden):
        raise CheckFailed(f"hidden states change with the vector of token {token}, which is not in the text")
    changed = (before.heads["tokens"] != after.heads["tokens"]).flatten(0, -2).any(0)
    others = changed.clone()
    others[token] = False
    should = subject.spec.sizes.tie_embeddings
    if bool(changed[token]) != should:
        verb = "does not change" if should else "changes"
        raise CheckFailed(f"model.tie_embeddings is {str(should).lower()}, but a token's vector {verb} its logit")
    if others.any():
        raise CheckFailed(f"the vector of token {token} changes the logit of token {int(others.nonzero()[0])}")
    if subject.encoder_decoder:
        batch["ids"][:] = token
        with_vector = model(batch).hidden
        model.all_stacks()[0].embedding.weight[token] -= 1.0
        reads = not torch.equal(with_vector, model(batch).hidden)
        if reads != subject.spec.stacks[-1].shared_embedding:
            raise CheckFailed(f"the decoder {'reads' if reads else 'does not read'} the table of the encoder")
