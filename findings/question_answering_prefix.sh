#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.13.0): the question-answering classes of decoders that are alike name their base model in two
# ways, and given tensors under the other's name from_pretrained begins with a random base model, without an error.
#
# Behaviour. LlamaForQuestionAnswering, and those of Qwen2, Qwen3 and Qwen3-MoE, hold and save the base model as
# `transformer`, where the families' other classes say `model`; MistralForQuestionAnswering, Mixtral's and Qwen2-MoE's say
# `model`. No tensor of a file with the other prefix is matched: the whole base model is initialised at random, only
# `qa_outputs` is read. from_pretrained returns the model; a table of missing keys that it logs as a warning (and
# loading_info) is all that tells. The folder of a LlamaForCausalLM, which is what one would fine-tune, is such a file for
# LlamaForQuestionAnswering; that of a bare LlamaModel, whose names have no prefix, is read right.
#
# Output seen:
#   LlamaForQuestionAnswering saves transformer.embed_tokens.weight; given model.: missing 11, unexpected 11, random base True
#   MistralForQuestionAnswering saves model.embed_tokens.weight; given transformer.: missing 11, unexpected 11, random base True
#   LlamaForCausalLM's folder read by AutoModelForQuestionAnswering: missing 13, unexpected 12, random base True
#   LlamaModel's folder read by AutoModelForQuestionAnswering: missing 2, unexpected 0, random base False
#
# One would have guessed that classes of two lines that inherit one generic class have one layout, and that a class with a
# head takes the base model out of any file of its family, as base_model_prefix is there for; it is this attribute that
# the class overrides. It matters because fine-tuning a Llama or a Qwen for question answering starts from noise, and
# because a converter that takes Llama's names for its kin writes files that load and answer at random.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0 safetensors==0.8.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
import transformers
from safetensors.torch import load_file, save_file

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
SIZES = dict(vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)


def saved(cls, folder):
    torch.manual_seed(0)
    model = cls(cls.config_class(**SIZES, num_key_value_heads=2))
    model.save_pretrained(folder)
    return model.get_input_embeddings().weight


def is_random(cls, folder, table):
    model, info = cls.from_pretrained(folder, output_loading_info=True)  # would raise
    differs = not torch.equal(model.get_input_embeddings().weight, table)
    print(f"missing {len(info['missing_keys'])}, unexpected {len(info['unexpected_keys'])}, random base {differs}")
    return differs


seen = []
for name, own, other in (("Llama", "transformer.", "model."), ("Mistral", "model.", "transformer.")):
    cls = getattr(transformers, f"{name}ForQuestionAnswering")
    table = saved(cls, name)
    tensors = load_file(f"{name}/model.safetensors")
    first = next(n for n in tensors if n.endswith("embed_tokens.weight"))
    swapped = {other + n.removeprefix(own) if n.startswith(own) else n: t for n, t in tensors.items()}
    save_file(swapped, f"{name}/model.safetensors", {"format": "pt"})
    print(f"{cls.__name__} saves {first}; given {other}: ", end="")
    seen += [first, is_random(cls, name, table)]
for name in ("LlamaForCausalLM", "LlamaModel"):
    table = saved(getattr(transformers, name), name)
    print(f"{name}'s folder read by AutoModelForQuestionAnswering: ", end="")
    seen.append(is_random(transformers.AutoModelForQuestionAnswering, name, table))
ok = seen == ["transformer.embed_tokens.weight", True, "model.embed_tokens.weight", True, True, False]
print("as described" if ok else "not as described: it has changed")
raise SystemExit(not ok)
PYTHON
