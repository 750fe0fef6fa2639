#!/usr/bin/env bash
# transformers 5.24.0, tokenizers 0.23.3: which token is eos, where tokenizer_config.json and special_tokens_map.json differ,
# depends on whether tokenizer_config.json has the key "added_tokens_decoder", be it empty.
#
# Behaviour. transformers 5 no longer writes special_tokens_map.json ("kept only for legacy"), but reads it, and what it says
# replaces what tokenizer_config.json says, null included: the eos token that is set in tokenizer_config.json has no effect.
# With the key "added_tokens_decoder" in tokenizer_config.json, even as {}, special_tokens_map.json is not read at all, and
# the eos token is the other one. additional_special_tokens of special_tokens_map.json are ignored where
# tokenizer_config.json has some, in either case.
#
# Output seen:
#   config <a>, map <b>                              eos <b>
#   config <a>, map null                             eos None
#   config <a>, map <b>, added_tokens_decoder {}     eos <a>
#   config silent, map <b>, added_tokens_decoder {}  eos None
#   config additional [<m>], map additional [<n>]    eos None, additional ['<m>']
#
# One would have guessed that the newer file stands above the legacy one, or that the legacy one fills in what the newer one
# leaves out. It matters because a folder of transformers 4 has both files: changing eos_token in tokenizer_config.json (to
# make a chat model stop) changes nothing in one folder and everything in the next, and a reader of these files that does not
# know the key ends its texts with another token than transformers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["x", "<a>", "<b>", "<m>", "<n>"])}, "x"))
inner.add_special_tokens(["<a>", "<b>", "<m>", "<n>"])


def read(name, config, special):
    folder = Path(name.replace(" ", "_").replace("<", "").replace(">", ""))
    folder.mkdir()
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    found = AutoTokenizer.from_pretrained(folder)
    print(f"{name:48}", "eos", found.eos_token, "additional", found.extra_special_tokens)
    return found.eos_token, found.extra_special_tokens


seen = [
    read("config <a>, map <b>", {"eos_token": "<a>"}, {"eos_token": "<b>"}),
    read("config <a>, map null", {"eos_token": "<a>"}, {"eos_token": None}),
    read("config <a>, map <b>, added_tokens_decoder {}", {"eos_token": "<a>", "added_tokens_decoder": {}}, {"eos_token": "<b>"}),
    read("config silent, map <b>, added_tokens_decoder {}", {"added_tokens_decoder": {}}, {"eos_token": "<b>"}),
    read("additional", {"additional_special_tokens": ["<m>"]}, {"additional_special_tokens": ["<n>"]}),
]
ok = seen == [("<b>", []), (None, []), ("<a>", []), (None, []), (None, ["<m>"])]
print("as described" if ok else "not as described: it has changed")
raise SystemExit(not ok)
PYTHON
