"""The check of an objective that its loss does not depend on how a batch is cut into micro-batches, or on what came before."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmlab import attributes
from llmlab.check import learning
from llmlab.check.parts.fixtures import tested_part
from llmlab.check.subject import VOCABULARY, CheckFailed, NotApplicable, Subject
from llmlab.data import stand_in
from llmlab.slots import Loss

ROWS, FIRST = 4, 1  # cut into one row and three, so that a mean of means is another than the mean
TOLERANCE = 2e-6  # relative: models compute in float64, but losses in float32, as they should of half types


def cut(subject: Subject) -> None:
    """A batch in one piece and in micro-batches has the same loss and gradient, and a sample is prepared alike each time."""
    tested_part(subject, "objective", "alignment")
    _prepared_alike(subject)
    objective = learning.build_objective(subject)
    if attributes.get(objective, "objective", "joint"):
        raise NotApplicable("its loss of a sample depends on the others in the micro-batch, as it declares")
    learning.require_gradients(subject)
    model, whole = subject.fresh().double().eval(), learning.prepared_batch(subject, rows=ROWS)
    others = learning.companion_models(subject, model)
    pieces = [{k: v[at] for k, v in whole.items()} for at in (slice(FIRST), slice(FIRST, None))]
    loss: Loss = objective.loss(model, whole, **others)
    parts: list[Loss] = [objective.loss(model, piece, **others) for piece in pieces]
    for name, (value, count) in loss.shown.items():
        values, counts = zip(*(part.shown[name] for part in parts), strict=True)
        if int(count) != sum(map(int, counts)):
            raise CheckFailed(f"{name}: {int(count)} targets in a batch, {[*map(int, counts)]} where it is cut in two")
        if not _near(value, torch.stack(values).sum()):
            raise CheckFailed(
                f"{name}: a batch has the sum {value.item():.9g}, but cut in two {torch.stack(values).sum().item():.9g}"
            )
    # Balance losses are means over micro-batches, and differ by how a batch is cut.
    want = learning.parameter_gradients(model, loss._replace(aux={}).mean())
    both = torch.stack([part._replace(aux={}).mean(loss.counts, shares=1) for part in parts]).sum()
    got = learning.parameter_gradients(model, both)
    for name, gradient in want.items():
        other = got[name]
        if (gradient is None) != (other is None) or (gradient is not None and not _near(gradient, other)):
            raise CheckFailed(f"the gradient of {name} differs where a batch is cut in two")


def _prepared_alike(subject: Subject) -> None:
    """CheckFailed where what is prepared of a sample depends on more than the sample and chance."""
    objective, again = learning.build_objective(subject), learning.build_objective(subject)
    length = learning.sample_length(subject) + 1
    rows = np.random.default_rng(0).integers(VOCABULARY, size=(3, length))
    zeros = np.zeros(length, dtype=np.int64)

    def prepared(by: object, i: int) -> dict[str, np.ndarray]:
        return stand_in.prepared(by, rows[i].copy(), i, np.random.default_rng(i), zeros)  # type: ignore[arg-type]

    first = [prepared(objective, i) for i in range(len(rows))]
    # In another order, and by an objective that has prepared nothing yet: a run that is resumed begins so.
    for i in reversed(range(len(rows))):
        for name, value in prepared(again, i).items():
            # A list where a sample has several sequences, of other lengths.
            one, other = (v if isinstance(v, list) else [v] for v in (value, first[i][name]))
            if len(one) != len(other) or not all(map(np.array_equal, one, other)):
                raise CheckFailed(f"{name}: a sample that is prepared again, with the same chance, is another")


def _near(one: Tensor, other: Tensor | None) -> bool:
    assert other is not None
    return bool((one - other).abs().max() <= TOLERANCE * (1 + one.abs().max()))
