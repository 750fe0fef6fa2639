"""Observer of rewards: each of ANSWERS is judged for each of six records.

Inputs, arrays of text with an element for each of these pairs: `answers`, and the records' fields `answer`, `other`, `number`,
`tests` (a list as Python writes it).
Where it judges with models, `judged/ROLE`, the score that the model of that role gives each pair.
Outputs: `scores/I`, the scores of all answers for record I; `needs` (4,), 1 for each of these fields that the part needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from llmlab import attributes
from llmlab.check.twins.observers.observed import Observed, build, options_of, sizes_of
from llmlab.check.twins.settings import Setting
from llmlab.slots import Output
from llmlab.twins import Given

ANSWERS = (
    *(
        "7",
        "8",
        "77",
        "7 ",
        " 7\n",
        "\t7",
        "x7",
        "7x",
        "x7y",
        "7 x",
        "x 7  ",
        "seven",
        "Seven",
        "SEVEN",
        "",
        "  ",
        "17 and 8",
    ),
    *(
        "is seven.",
        "is seven. \n",
        "is seven .",
        "seven. It is",
        "se ven",
        "one two",
        "one  two",
        "two",
        "\\boxed{7}",
        "1e3",
        "-1000",
        "is 8.",
    ),
)


N_RECORDS = 6  # which repeat, so that each answer meets all of them
FIELDS: dict[str, tuple[object, ...]] = {
    "answer": ("7", " 7", "seven", 7, "one two\n", ""),
    "other": ("8", "x7", "Seven", 1000.0, "8", "x7"),
    "number": ("7", "-1,000", "8.0", 7, "#### 7", 1000.0),
    "tests": ("7", ["7", "seven"], ["assert 7 == 8"], "x7", ["1", "(", "assert [1]"], 7),
}


def observe(setting: Setting) -> Observed:
    reward = build(setting)
    answers = [answer for answer in ANSWERS for _ in range(N_RECORDS)]
    records = [{key: FIELDS[key][i % N_RECORDS] for key in FIELDS} | {"prompt": "3 + 4?"} for i in range(len(answers))]
    fields = {key: np.array([str(record[key]) for record in records]) for key in FIELDS}
    judged = {
        role: np.sin(np.arange(len(answers)) + i) for i, role in enumerate(attributes.get(reward, "reward", "models"))
    }
    ids = torch.arange(len(answers))[:, None]
    more = {"batch": {"ids": ids, "valid": ids >= 0}} if judged else {}
    scores = np.array(reward.score(records, answers, **more, **{role: _judge(of) for role, of in judged.items()}))
    outputs = {f"scores/{i}": scores[i::N_RECORDS] for i in range(N_RECORDS)}
    outputs["needs"] = np.array([float(key in reward.needs) for key in FIELDS])
    given = {"answers": np.array(answers), **fields, **{f"judged/{role}": of for role, of in judged.items()}}
    return Observed(Given(options_of(setting), sizes_of(setting), given, {}), outputs)


def _judge(scores: np.ndarray) -> Callable[..., Output]:
    """A model whose text heads give each row the score of the number that it reads."""

    def forward(batch: Mapping[str, torch.Tensor], heads: Mapping[str, None]) -> Output:
        found = torch.from_numpy(scores)[batch["ids"][:, 0]][:, None]
        return Output(hidden=found, heads=dict.fromkeys(heads, found), aux=None)

    return forward
