"""From texts to two streams of ids: read, split, learn the tokenizer, tokenize, with memory for a few documents at a time.

Each step leaves what it made in the folder, so that a preparation that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.data import cache, fingerprint
from llmlab.data.corpus import PARTS
from llmlab.data.encoded_part import PartWriter
from llmlab.data.fingerprint import OtherText
from llmlab.data.text_store import Part, TextStore, leave_out_repeated, split
from llmlab.data.tokenizer import Tokenizer, ends_nothing
from llmlab.data.tokenizer import make as make_tokenizer
from llmlab.ranks import rank_zero_info

if TYPE_CHECKING:
    from llmlab.config import schema
    from llmlab.data.progress import Bar
    from llmlab.data.reading import Reading

LEARNT = "learnt.json"  # beside a tokenizer that was learnt: its notes


def make(
    folder: Path,
    data: schema.Data,
    cfg: schema.Tokenizer,
    special: tuple[str, ...],
    reading: Reading,
    wanted: str | None,
    bar: Bar,
    together: bool,
) -> dict[str, Any]:
    """Write the corpus and its tokenizer into `folder`; the manifest. wanted: the fingerprint that the text must have.
    together: equal texts are in one part."""
    if (store := TextStore.open(folder)) is not None:
        rank_zero_info(f"going on with a preparation that was stopped: its {len(store):,} documents are read")
    else:
        store = TextStore.write(folder, reading.documents(), reading.account)
    found = store.about["fingerprint"]
    if wanted not in (None, found):
        raise OtherText(found, fingerprint.read(folder) or [])
    parts, how = split(store, data.split, data.validation, together)
    notes = []
    if together and how == "position" and (repeated := leave_out_repeated(parts)):
        those = "document is left out: its" if repeated == 1 else "documents are left out: their"
        notes.append(f"{repeated:,} held-out {those} text is in the training part too")
    if how != data.split:
        notes.append(
            f"no whole document of {len(store)} falls on each side of data.split=document: "
            f"the last {data.validation:.0%} of the text is held out instead (data.split=position)"
        )
    bar("learning the tokenizer", None, None)
    eos = (cfg.kind != "char" or len(store) > 1) and not ends_nothing(cfg)
    # Sorted: ids of special tokens, and with them weights, do not depend on the order in which an objective names them.
    names = ("eos",) * eos + tuple(sorted(set(special) - ({"eos"} if eos else set())))
    tokenizer = _tokenizer(folder, cfg, parts, names)
    end = tokenizer.special.get("eos") if len(store) > 1 else None
    if end is None and len(store) > 1:
        notes.append("the tokenizer has no token that ends a document: one follows the other without any")
    lead = tokenizer.opening(data.bos)
    if lead:
        shown = " ".join(tokenizer.inner.id_to_token(i) or str(i) for i in lead)
        why = "data.bos=true" if data.bos else "as the tokenizer's own template has it (data.bos=false leaves it out)"
        notes.append(f"each document begins with {shown}, {why}")
    total, done, tokens = sum(part.characters for part in parts.values()), 0, {}

    def tick(characters: int) -> None:
        nonlocal done
        done += characters
        bar("tokenizing", done, total)

    writer = PartWriter(folder, tokenizer, (tuple(lead), end), tick)
    # Bits per byte are asked of text that is measured, never of text that is trained on; without a split all is measured.
    measured = "train" if how == "none" else "validation"
    for name, part in parts.items():
        tokens[name], losses = writer.write(name, part, name == measured)
        notes += losses
    tokenizer.save(folder)
    made = {
        "fingerprint": found,
        "source": data.source,
        "split": how,
        "documents": {name: len(part) for name, part in parts.items()},
        "bytes": {name: part.bytes for name, part in parts.items()},
        "tokens": tokens,
        "vocab_size": tokenizer.vocab_size,
        "special": {**tokenizer.special, **({"bos": lead[0]} if len(lead) == 1 else {})},
        "lead": list(lead),
        "notes": [*notes, *tokenizer.notes],
        "read": store.about["read"],
    }
    store.remove()
    for name in parts:
        writer.forget(name)
    (folder / LEARNT).unlink(missing_ok=True)
    return made


def _tokenizer(folder: Path, cfg: schema.Tokenizer, parts: Mapping[str, Part], names: tuple[str, ...]) -> Tokenizer:
    """The tokenizer, learnt from the parts or as it was before a kill."""
    if (learnt := cache.read_checked(folder / LEARNT)) is not None:
        tokenizer = Tokenizer.load(folder)
        tokenizer.notes[:] = learnt["notes"]
        return tokenizer
    train, validation = (parts[part] for part in PARTS)
    tokenizer = make_tokenizer(cfg, train, validation, names)
    if cfg.kind != "file":  # to read one costs nothing
        tokenizer.save(folder)
        cache.write_manifest(folder / LEARNT, {"notes": list(tokenizer.notes)})
    return tokenizer
