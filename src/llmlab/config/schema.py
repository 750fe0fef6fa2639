"""The typed root of the config: every level is a dataclass, so that a typo can't hide.

Fields for slots are typed `Part`, the empty base of every part's own config (made from its
constructor's signature by `llmlab.config.store`). Nothing here imports torch.
"""

from __future__ import annotations

import copyreg
from dataclasses import MISSING, dataclass, field, make_dataclass
from typing import Any, Optional

from llmlab.record_kinds import KEYS
from llmlab.sizes import ModelConfig
from llmlab.slot_names import LAYER_SLOTS, LISTED_SLOTS, SLOTS, STACK_SIZES, Part

# A launcher's process sends configs back with their classes, by value. Without this MISSING would come back as another
# object, in fields that then seem to have it for a default.
copyreg.pickle(type(MISSING), lambda _: "MISSING")


def _slots(names: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    return [(name, Optional[Part], field(default=None)) for name in names]


@dataclass
class Layers:
    """first + cycle + last resolve to one list of kinds; all empty: every layer is of one unnamed kind."""

    first: list[str] = field(default_factory=list)
    cycle: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)


# Made, not written out: slots are named once, in llmlab.slot_names.
Kind = make_dataclass("Kind", _slots(LAYER_SLOTS))
Stack = make_dataclass(
    "Stack",
    [
        ("n_layers", Optional[int], field(default=None)),
        *((size, Optional[int], field(default=None)) for size in STACK_SIZES),
        ("shared_embedding", bool, field(default=True)),  # its token table is the first stack's
        ("layers", Layers, field(default_factory=Layers)),
        ("execute", list[int], field(default_factory=list)),
        *_slots((*LAYER_SLOTS, "embedding", "mask", "cross_attention")),
    ],
)


# The keys by which a file calls the fields of its records; None: by the field's own name.
Fields = make_dataclass("Fields", [(key, Optional[str], field(default=None)) for key in KEYS])


@dataclass
class Data:
    source: str = "python_docs"  # python_docs, python_code, arithmetic, reasoning_gym or files
    path: Optional[str] = None  # files: a folder or a file
    fields: Fields = field(  # type: ignore[valid-type]
        default_factory=Fields
    )  # records: the keys of their fields, data.fields.label=category
    field: str = (
        "text"  # files: the key of a row's text, "a.b" for one inside another; where a file has no "text": guessed
    )
    strict: bool = False  # files: the first document that can't be read is an error
    broken: float = (
        0.1  # files: share of documents that may be unreadable: they are left out, listed in quarantine.jsonl
    )
    seq_len: int = 128
    validation: float = 0.1  # share held out
    split: str = (
        "document"  # "document": whole documents by a hash of their text; "position": the last share of the text
    )
    separate_documents: bool = False  # tokens see no other document of their packed sequence
    bos: Optional[bool] = None  # tokenizer=file: documents begin with its bos; None: if its own template puts it there
    votes: str = (
        "majority"  # a labelled record's `votes` become a label by: majority, or label_model (who is right how often)
    )
    task: Optional[str] = None  # reasoning_gym: the task
    n_records: int = 1000  # reasoning_gym: questions that are made
    max_documents: Optional[int] = None  # keep no more than these, the first that pass the filters (for a quick try)
    num_workers: int = 0  # processes that prepare samples, and that measure texts for filters


@dataclass
class Tokenizer:
    kind: str = "bpe"  # bpe (byte-level, trained on the corpus), char, file
    vocab_size: int = 1024  # bpe: number of tokens to learn, special ones included
    path: Optional[str] = None  # file: a tokenizer.json
    template: Optional[str] = None  # of conversations: chatml, alpaca or a .jinja file; None: its own, else chatml


@dataclass
class Train:
    batch_size: int = 16  # sequences per optimizer step, over all devices
    micro_batch_size: Optional[int] = None  # sequences per forward on one device; None: batch_size / devices
    clip: Optional[float] = 1.0  # gradient norm
    learns: Optional[list[str]] = (
        None  # roles (bias) and paths (heads) of what learns, -WORD: of what does not; None: all
    )
    checkpoint_every: Optional[int] = None  # optimizer steps; None: a twentieth of the run
    keep: int = 2  # checkpoints kept
    validate_every: Optional[int] = None  # optimizer steps; None: 10 times, or as often as a tenth of the time pays for
    validation_batches: Optional[int] = None  # None: all of the validation set
    log_every: int = 10  # optimizer steps
    stop_kl: Optional[float] = (
        None  # the run ends where the KL to the reference, a mean since the last row, is above it
    )
    stop_loss: Optional[float] = None  # the same of the training loss
    sample: Optional[bool] = None  # a text sample at the end; None: of a run of 100 steps or more


@dataclass
class Budget:
    """Exactly one is set. It is the horizon of the schedule."""

    tokens: Optional[float] = None
    steps: Optional[int] = None
    flops: Optional[float] = None
    minutes: Optional[float] = None


@dataclass
class Strategy:
    name: str = "single"  # single, ddp, fsdp, fsdp_tp, zero1, zero2, zero3, zero2_offload, zero3_offload
    tensor_parallel: int = 1  # devices that share each layer's heads and feed-forward (strategy=fsdp_tp)


@dataclass
class Placement:
    activation_checkpointing: bool = (
        False  # a layer's activations are computed again in the backward: less memory, slower
    )
    compile: bool = False  # each layer is compiled by torch.compile; of one with experts, its attention


@dataclass
class WandB:
    project: str = "llmlab"
    entity: Optional[str] = None  # a user or a team; None: the account's own
    name: Optional[str] = None  # None: the name of the run folder
    group: Optional[str] = None  # None: the sweep's name
    tags: list[str] = field(default_factory=list)  # beside those of the parts
    mode: str = "auto"  # auto: online with a key and a network, else offline; online; offline
    artifact: bool = False  # the final checkpoint too


@dataclass
class TensorBoard:
    flush_seconds: int = 30


@dataclass
class Logger:
    """The loggers that a run reports to beside metrics.csv: each that is not None."""

    wandb: Optional[WandB] = None
    tensorboard: Optional[TensorBoard] = None
    samples: int = 10  # at most so many texts over the run, one at a validation


def root(slots: tuple[str, ...] = SLOTS) -> type:
    """The dataclass of the root. `trainer` is typed by the keys of Lightning's Trainer (llmlab.config.trainer)."""
    from llmlab.config.trainer import Trainer

    fields: list[tuple[str, Any, Any]] = [
        ("seed", int, 1),
        ("model", ModelConfig, field(default_factory=ModelConfig)),
        # Heads go by role: an objective may have several, of one part even.
        *_slots(tuple(s for s in slots if s not in ("head", *LISTED_SLOTS))),
        *((slot, dict[str, Part], field(default_factory=dict)) for slot in LISTED_SLOTS),
        ("heads", dict[str, Part], field(default_factory=dict)),
        ("layers", Layers, field(default_factory=Layers)),
        ("execute", list[int], field(default_factory=list)),
        # The names of kinds and stacks are the family's own; what is inside of each is typed.
        ("kinds", dict[str, Kind], field(default_factory=dict)),  # type: ignore[valid-type]
        ("stacks", dict[str, Stack], field(default_factory=dict)),  # type: ignore[valid-type]
        ("data", Data, field(default_factory=Data)),
        ("tokenizer", Tokenizer, field(default_factory=Tokenizer)),
        ("train", Train, field(default_factory=Train)),
        ("budget", Budget, field(default_factory=Budget)),
        ("strategy", Strategy, field(default_factory=Strategy)),
        ("placement", Placement, field(default_factory=Placement)),
        ("precision", str, "32-true"),
        ("trainer", Trainer, field(default_factory=Trainer)),
        ("logger", Logger, field(default_factory=Logger)),
        ("resume", Optional[str], None),
        ("resume_from", Optional[str], None),  # start: begin again where no checkpoint of the resumed run is sound
        # other models that the objective works with, by role: words that change this one, a run folder, or hf=FOLDER
        ("models", dict[str, Any], field(default_factory=dict)),
        ("init_from", Optional[str], None),
        ("init_tokenizer", Optional[str], None),  # typed as init_from.tokenizer: own (None) or new, as tokenizer= says
        # typed as init_from.embedding: a run, or a file in word2vec's text format, whose vectors the token table begins with
        ("init_embedding", Optional[str], None),
        ("init_adapter", Optional[str], None),  # typed as init_from.adapter: a folder that PEFT has written
        ("published", Optional[str], None),  # the size that a model file stands for, as its authors published it
        ("experiment_name", Optional[str], None),
        ("sweep", Optional[str], None),  # the sweep that the run belongs to
    ]
    return make_dataclass("root", fields)
