#!/usr/bin/env bash
# sacrebleu 2.6.0: references given as one list for each text are taken for streams of references, and all texts but the
# first are left out of the score, without an error or a warning.
#
# Behaviour. `references` is a list of streams, each with a reference for every text: [[r1, r2, r3]] for three texts. Given
# [[r1], [r2], [r3]], one list a text as NLTK's corpus_bleu and Hugging Face's `evaluate` have it, sacrebleu reads three streams of
# one reference. Texts and streams are put side by side up to the shortest, so that one text is scored, against r1, r2 and r3
# as its three references. The same holds for chrF. A single stream with too few references loses
# the texts behind it in the same way, and one with too many its own end.
#
# Output seen:
#   [[r1, r2, r3]]:     BLEU 44.61, of 18 tokens
#   [[r1], [r2], [r3]]: BLEU 100.00, of 6 tokens
#   chrF 47.41 and 100.00
#
# One would have guessed an error, as there are three texts and each stream has one reference, or that the shape is
# understood: the same call with `evaluate` is right. It matters because a training loop that reports BLEU shows 100 as soon as
# the first text of the validation set is right, or follows that one text alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sacrebleu==2.6.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from sacrebleu.metrics import BLEU, CHRF

right = ["the cat sat on the mat", "a train leaves the station at noon", "snow fell on the hills"]
texts = [right[0], "the bus goes to town at night", "rain fell on the roofs"]
by_stream, by_text = [right], [[one] for one in right]
one, other = BLEU().corpus_score(texts, by_stream), BLEU().corpus_score(texts, by_text)
print(f"[[r1, r2, r3]]:     BLEU {one.score:.2f}, of {one.sys_len} tokens")
print(f"[[r1], [r2], [r3]]: BLEU {other.score:.2f}, of {other.sys_len} tokens")
chrf = [CHRF().corpus_score(texts, refs).score for refs in (by_stream, by_text)]
print(f"chrF {chrf[0]:.2f} and {chrf[1]:.2f}")
assert one.sys_len == 18 and one.score < 60
assert other.sys_len == 6 and round(other.score, 6) == 100 == round(chrf[1], 6), "it is no longer so"
print("as described")
PYTHON
