#!/usr/bin/env bash
# transformers 5.24.0, tokenizers 0.23.3: for a folder whose config.json says "model_type": "qwen2", AutoTokenizer does not use
# the tokenizer.json that is there, whatever tokenizer_config.json says.
#
# Behaviour. The same tokenizer.json (byte-level BPE, no normalizer, the split of GPT-2) with the same tokenizer_config.json
# ("tokenizer_class": "PreTrainedTokenizerFast" or "TokenizersBackend") is read in two ways. Beside a config.json of type
# "llama" it is read as it is. Beside one of type "qwen2" AutoTokenizer builds Qwen2Tokenizer: the vocabulary and the merges
# of the file under NFC and another split, and a pad token "<|endoftext|>", which is no token of the file, with an id beyond
# its vocabulary. No warning, no error. (qwen2 is one of the few types that are both in
# MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS, which makes tokenizer_class be overruled, and in TOKENIZER_MAPPING_NAMES with a
# class of its own; the other types of that list fall to TokenizersBackend, which does read the file.) An "auto_map" in
# tokenizer_config.json ends it, without trust_remote_code and without the module that it names being there.
#
# Output seen:
#   llama PreTrainedTokenizerFast TokenizersBackend [269, 137, 224, 221, 272, 274, 273, 258] pad None of 275
#   qwen3 PreTrainedTokenizerFast TokenizersBackend [269, 137, 224, 221, 272, 274, 273, 258] pad None of 275
#   qwen2 PreTrainedTokenizerFast Qwen2Tokenizer [257, 70, 128, 103, 221, 221, 17, 18, 19, 20, 21, 274, 273, 258] pad 275 of 276
#   qwen2 TokenizersBackend Qwen2Tokenizer [257, 70, 128, 103, 221, 221, 17, 18, 19, 20, 21, 274, 273, 258] pad 275 of 276
#   qwen2 PreTrainedTokenizerFast auto_map TokenizersBackend [269, 137, 224, 221, 272, 274, 273, 258] pad None of 275
#
# One would have guessed that a tokenizer.json is the whole tokenizer ("tokenizer_file: a serialized Tokenizer object"), and
# that tokenizer_class, or at least PreTrainedTokenizerFast, decides. It matters because a model of type qwen2 that was
# trained with any tokenizer but Qwen's own is fed other ids than in training by everything that loads through
# AutoTokenizer, and with padding an id for which its table has no row.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

inner = Tokenizer(models.BPE())
inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
inner.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False)
inner.train_from_iterator(["cafe 12345 don't the cat\n\n" * 5], trainer)
text = "cafe\u0301  12345\n\n don't"
wanted = inner.encode(text).ids


def read(model_type, tokenizer_class, **more):
    folder = Path(f"{model_type}-{tokenizer_class}-{len(more)}")
    folder.mkdir()
    inner.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": tokenizer_class, "eos_token": "<eos>", **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": inner.get_vocab_size()}))
    found = AutoTokenizer.from_pretrained(folder)
    ids = found(text)["input_ids"]
    print(model_type, tokenizer_class, *more, type(found).__name__, ids, "pad", found.pad_token_id, "of", len(found))
    return type(found).__name__, ids == wanted, found.pad_token_id, len(found)


size = inner.get_vocab_size()
as_it_is, replaced = ("TokenizersBackend", True, None, size), ("Qwen2Tokenizer", False, size, size + 1)
auto_map = {"AutoTokenizer": [None, "not_there.Tokenizer"]}
seen = [read("llama", "PreTrainedTokenizerFast"), read("qwen3", "PreTrainedTokenizerFast")]
ok = seen == [as_it_is] * 2
ok &= [read("qwen2", c) for c in ("PreTrainedTokenizerFast", "TokenizersBackend")] == [replaced] * 2
ok &= read("qwen2", "PreTrainedTokenizerFast", auto_map=auto_map) == as_it_is
print("as described" if ok else "not as described: it has changed")
raise SystemExit(not ok)
PYTHON
