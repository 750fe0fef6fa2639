"""The attributes that an objective may declare on its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from llmlab.attribute import Attribute
from llmlab.record_kinds import KINDS, TEXT


class Companion(TypedDict, total=False):
    """Declaration of another model that an objective works with."""

    heads: dict[str, str]  # role: the name of its part
    trains: bool
    shares: tuple[str, ...]  # of the trained model's tables: "embedding", and "position" where both have the same
    delta: bool  # of a shared table: the trained model reads it plus a delta of its own, and moves the delta alone
    copies: bool  # it is the trained model as that begins, frozen
    words: tuple[str, ...]  # of the model where none is chosen, as they are typed in models.ROLE
    warm: bool  # where none is chosen it begins with the weights of init_from too, but for its heads
    heads_from: dict[str, str]  # role: of the head of a finished model that stands for it, where that model lacks it


# fmt: off
RESTORES = (
    "masked", "pair", "framed", "sampled", "diffused", "spans", "gaps", "blanks", "noised", "next", "continued", "infilled",
    "queries", "pairs",
)
# fmt: on

OBJECTIVE: Mapping[str, Attribute] = {
    "reads": Attribute(
        str,
        "text",
        "what a sample is: a window of text, or a record of that kind",
        (TEXT, *KINDS),
    ),
    "mask": Attribute(str, "causal", "the mask that it brings", part_of="mask"),
    "heads": Attribute(dict[str, str], {"tokens": "lm"}, "a head for each role that it asks for", part_of="head"),
    "special": Attribute(tuple[str, ...], (), "special tokens that it needs, by name (eos, pad, mask, cls, sep ...)"),
    "sentinels": Attribute(int, 0, "so many special tokens more, sentinel_0, sentinel_1, ..."),
    "topologies": Attribute(
        tuple[str, ...],
        (),
        "kinds of model that it can train; (): any",
        ("decoder", "encoder", "encoder_decoder"),
    ),
    "learns": Attribute(
        tuple[str, ...], (), "what alone learns unless the user says: roles and paths, as `train.learns` has them"
    ),
    "models": Attribute(dict[str, Companion], {}, "other models that it works with, by role"),
    "widths": Attribute(
        dict[str, str],
        {},
        "the companion, by its role, whose hidden states are as wide as the `width` of a head, by its role",
    ),
    "measures": Attribute(
        dict[str, str],
        {},
        "what its terms and logs are: nll is a likelihood, bits one of all of the text; others are just numbers",
        ("nll", "bits", "accuracy", "reward", "margin", "loss"),
    ),
    "shows_kl": Attribute(
        bool, False, "its logs have `kl`, a divergence from the reference, which train.stop_kl bounds"
    ),
    "collate": Attribute(str, "stack", "how samples become a batch", ("stack", "pad", "pack")),
    "other": Attribute(bool, False, "a sample comes with another one that is drawn for it, under the key `other`"),
    "classes": Attribute(int, 0, "so many classes the labels of its records must have; 0: any number"),
    "segments": Attribute(int, 0, "of how many kinds of segments its samples are, which a model must tell apart"),
    "together": Attribute(
        bool, False, "of one that acts: it learns from all answers to a prompt at once, which are one sample"
    ),
    "judged": Attribute(bool, True, "of one that acts: a reward judges its answers"),
    "fixed_counts": Attribute(bool, False, "every sample has as many targets"),
    "joint": Attribute(
        bool,
        False,
        "the loss of a sample depends on the others in its micro-batch, as with in-batch negatives: its `gather` is set to "
        "what collects rows of all ranks, and a batch that is cut is said to change it",
    ),
    "halves": Attribute(
        bool,
        False,
        "it reads a text from both ends at once: no part of a layer may join the halves of a vector (`halves`)",
    ),
    "needs_dropout": Attribute(
        bool, False, "it tells views of a text apart by dropout alone: of a model without, that is said"
    ),
    "counts": Attribute(
        int,
        1,
        "numbers that its samples place a token with: 2 where `positions` are pairs, for a position that counts two",
    ),
    "gives": Attribute(
        tuple[str, ...], (), "batch keys that it offers to masks and heads that need them: nothing has to read them"
    ),
    "generates": Attribute(
        str,
        "next",
        "how a model that it has trained writes a text: the next token each time, or by unmasking all of it in steps",
        ("next", "unmasking"),
    ),
    "restores": Attribute(
        str | None,
        None,
        "how a sample gives its text back, for `llmlab check`: labels are what masked, changed or kept tokens were, of a "
        "pair of pieces or of a framed one too; sampled: so, with a companion's tokens in their places; diffused: so, "
        "without the text's first; spans, sentences (gaps) and blanks fill in sentinels or masks in order; noised: labels "
        "are all of a text whose source has no token twice; labels are the next tokens, of all, continued behind a prefix, "
        "or infilled: documents whose middle comes last; queries behind the text ask for tokens of it; pairs: tokens stand "
        "with those around them",
        RESTORES,
        own=True,
    ),
    "shown": Attribute(float, 0.0, "the share of targets whose answer the model is shown, for `llmlab check`"),
    "when": Attribute(
        dict[str, dict[str, Any]],
        {},
        "what it declares beside where an option has a value: `pair=nsp` where `pair` is that, `weight` where it is not 0, "
        "False or empty; dicts are merged, tuples joined, other values replaced",
        own=True,  # it names the class's own options
    ),
    "joins": Attribute(
        str, "", "the option that lists other objectives: it declares what they do, beside what it says itself"
    ),
    "joins_options": Attribute(str, "", "the option that lists the options of each of them"),
    "joins_names": Attribute(str, "", "the option that lists names for what each of them shows"),
}
