"""Writes src/llmlab/check/reference.json: what `transformers` says of each family with the weights of `path_seeded_model`.

    python tests/check/record_reference.py [FAMILY ...]

Needs transformers 5.23. A family that it lacks is asked for as a kin that it has, whose tensors bear the same names here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import llmlab
from llmlab.check import reference
from llmlab.check.cases import family_cases
from llmlab.check.subject import Case, Subject
from llmlab.config.spec import ModelSpec
from llmlab.model.model import Model

LACKING = ("gpt3", "glm_130b", "glm_2022", "chatglm1", "lstm", "elmo")  # transformers has nothing of the kind
PADDED = (f"position.pad_id={reference.PADDING}", "position.offset=2")
MORE = {  # what a checkpoint can say, where it is not what the matrix has; and an objective with scores of the vocabulary
    "deberta_v3": ("objective=mlm",),
    "electra": ("objective=mlm",),
    "roberta": PADDED,
    "mpnet": (*PADDED, "position.buckets=32", "position.max_distance=128"),
    "modernbert": ("kinds.local.window.left=4", "kinds.local.window.right=3"),
}
KIN = {  # family -> the kin and what makes it the same, sizes apart
    "baichuan": ("model=llama1",),
    "chatglm2": ("model=glm",),
    "qwen1": ("model=qwen2", "attention=mha", "position.theta=10000.0"),
}
SIZES = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size", "max_positions", "norm_eps")


def recorded(case: Case) -> dict[str, Any]:
    """A family's entry in the file."""
    more = MORE.get(case.name, ())
    spec = reference.recorded_subject(Subject(case), more).spec
    model = reference.path_seeded_model(spec)
    with TemporaryDirectory() as folder:
        llmlab.save_hf(as_kin(case.name, spec, model), folder)
        theirs = loaded(Path(folder), any(layer.routed for stack in model.all_stacks() for layer in stack.layers))
    out = {}
    for name, batch in reference.batches(spec).items():
        out[name] = [float(f"{v:.8g}") for v in reference.sampled_logits(answered(theirs, batch), batch).tolist()]
    return {"overrides": list(case.overrides), "more": list(more), "logits": out}


def as_kin(family: str, spec: ModelSpec, model: Model) -> Model:
    if family not in KIN:
        return model
    sizes = [f"model.{size}={v}" for size in SIZES if (v := getattr(spec.sizes, size)) is not None]
    kin = reference.path_seeded_model(Subject(Case(family, (*KIN[family], *sizes))).spec)
    kin.load_state_dict(model.state_dict())
    return kin


def loaded(folder: Path, routed: bool) -> Any:
    """The reference's model in float64, computed step by step."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(folder)
    plain = {"attn_implementation": "eager"} | ({"experts_implementation": "eager"} if routed else {})
    cls = getattr(transformers, config.architectures[0])
    model, info = cls.from_pretrained(folder, output_loading_info=True, dtype=torch.float64, **plain)
    wrong = {k: info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[k]}
    assert not wrong, wrong
    return model.double().eval()


@torch.no_grad()
def answered(theirs: Any, batch: dict[str, Tensor]) -> Tensor:
    """Logits. Its softmax is in float32 always, in which the hidden score of float64 is -inf: where a token of padding sees
    nothing all is NaN then, and the model is asked in float32."""
    names = {"ids": "input_ids", "valid": "attention_mask"}
    if "source_ids" in batch:
        names = {"source_ids": "input_ids", "source_valid": "attention_mask", "ids": "decoder_input_ids"}
    given = {names[name]: tensor.long() for name, tensor in batch.items()}
    logits = theirs.double()(**given).logits
    return theirs.float()(**given).logits if logits.isnan().any() else logits


def known() -> list[Case]:
    return [case for case in family_cases() if case.name not in LACKING]


def main() -> None:
    import transformers

    entries = json.loads(reference.FILE.read_text())["families"] if reference.FILE.exists() else {}
    for case in known():
        if not sys.argv[1:] or case.name in sys.argv[1:]:
            entries[case.name] = recorded(case)
            print(case.name, flush=True)
            lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entries[name])}" for name in sorted(entries))
            reference.FILE.write_text(
                f'{{"transformers": "{transformers.__version__}", "families": {{\n{lines}\n}}}}\n'
            )


if __name__ == "__main__":
    main()
