"""Writes tests/plugins/datatrove.json: what datatrove's filters say of the documents of filter_documents.py.

    python tests/plugins/record_datatrove.py

Needs datatrove 0.10.1, spacy, and nothing of llmlab.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

from filter_documents import documents, groups

FILE = Path(__file__).with_name("datatrove.json")


def left(texts: list[str]) -> int:
    """How many clusters MinHash makes of texts, of which it keeps a document each."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

    signer = MinhashDedupSignature(output_folder="unused")
    clusters: list[set[tuple[int, ...]]] = []
    alone = 0
    for text in texts:
        shingles = signer.get_shingles(text)
        if not len(shingles):  # no signature is written
            alone += 1
            continue
        own = {(i, *band) for i, band in enumerate(signer.get_signature(shingles))}
        clusters = [c for c in clusters if not c & own] + [own.union(*(c for c in clusters if c & own))]
    return alone + len(clusters)


def main() -> None:
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter
    from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
    from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

    filters = {
        "gopher quality": GopherQualityFilter(),
        "gopher repetition": GopherRepetitionFilter(),
        "c4": C4QualityFilter(),
        # With the paper's numbers.
        "c4 paper": C4QualityFilter(min_num_sentences=3, min_words_per_line=5),
        "fineweb": FineWebQualityFilter(),
        "fineweb paper": FineWebQualityFilter(char_duplicates_ratio=0.1, new_line_ratio=1e9),
    }
    texts = documents()
    found = {}
    for name, judge in filters.items():
        said = {}
        for key, text in texts.items():
            verdict = judge.filter(Document(text=text, id=key))
            said[key] = verdict[1] if isinstance(verdict, tuple) else None if verdict else "dropped"
        found[name] = {key: why for key, why in said.items() if why is not None}
    record = {
        "datatrove": importlib.metadata.version("datatrove"),
        "documents": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "dropped": found,
        "left by minhash": {name: left(texts) for name, texts in groups().items()},
    }
    FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
