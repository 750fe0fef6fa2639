"""samples.jsonl is read back as it was written, whatever characters a model writes."""

import json

from llmlab.training.loggers import samples


def test_texts_with_unicode_line_ends_are_read_back(tmp_path):
    written = [samples.Sample(1, "a\u2028b", "\x85\u2029"), samples.Sample(2, "\n", "\x0c\x1e")]
    lines = [json.dumps(s._asdict(), ensure_ascii=False) + "\n" for s in written]
    (tmp_path / samples.NAME).write_text("".join(lines) + '{"step": 3, "pro', encoding="utf-8")
    assert samples.read(tmp_path / samples.NAME) == written
