"""A GGUF file (llama.cpp's) made a Hugging Face folder: LLaMA's layout with a byte-level BPE.

The file is read by the `gguf` package; quantised tensors become the float32 numbers that they stand for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from llmlab.errors import UserError
from llmlab.hub.files import write_folder

if TYPE_CHECKING:
    import tokenizers

T = TypeVar("T")
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# gguf's names (gguf/constants.py, TENSOR_NAMES), which are the same for all architectures.
LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{n}": f"self_attn.{n}_proj" for n in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{n}": f"mlp.{n}_proj" for n in ("gate", "up", "down")},
}
SIZES = {  # config.json -> key of the file, after "llama."
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
# Keys that change what the model computes, with the values that are LLaMA's own.
PLAIN = {"rope.scaling.type": ("none",), "expert_count": (0,), "attention.causal": (True,)}
SPLITS = ("smollm", "gpt-2", "gpt2", "default")  # how llama.cpp names the split before BPE
# gguf.TokenType.
CONTROL, USER_DEFINED = 3, 4


def convert(file: Path, folder: Path) -> None:
    """Writes config.json, model.safetensors, the tokenizer and its chat template to `folder`.

    UserError names a key, a kind of tokenizer or a tensor that has no place there.
    """
    import gguf
    import torch

    try:
        reader = gguf.GGUFReader(file)
    # The library raises what it stumbles over.
    except Exception as e:
        raise UserError(f"{file} is no GGUF file that can be read: {e}") from None
    about = _About(file, {name: field.contents() for name, field in reader.fields.items()})
    tensors = {}
    for tensor in reader.tensors:
        # astype copies: an unquantised tensor comes as a view of the read-only mapped
        # file, of which torch.from_numpy warns.
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = about.name(tensor.name)
        # llama.cpp's converter permutes the rows of q and k, as its rope turns neighbours where Hugging Face's turns halves.
        for turned, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if f".{turned}." in name:
                values = _halves(values, about.config[heads])
        tensors[name] = torch.from_numpy(np.ascontiguousarray(values))
    # llama.cpp reads the token table as the head where `output.weight` is missing.
    config = {**about.config, "tie_word_embeddings": "lm_head.weight" not in tensors}
    # The table's rows, which may be padded beyond the tokens of the list.
    config["vocab_size"] = len(tensors["model.embed_tokens.weight"])
    ids = {k: v for k, v in about.ids.items() if k in ("bos", "eos", "pad")}
    config |= {f"{role}_token_id": i for role, i in ids.items()}
    beside = {
        "tokenizer.json": about.tokenizer().to_str(pretty=True),
        "tokenizer_config.json": _json(about.tokenizer_config()),
        "generation_config.json": _json({f"{role}_token_id": i for role, i in ids.items()}),
    }
    write_folder(folder, config, tensors, {name: text.encode() for name, text in beside.items()})


class _About:
    """The metadata of a GGUF file, as the config.json and the tokenizer that it becomes."""

    def __init__(self, file: Path, said: dict[str, Any]):
        self.file, self.said = file, said
        if (kind := said.get("general.architecture")) != "llama":
            raise UserError(f"{file}: general.architecture={kind!r} is not implemented; known: 'llama'")
        for key, known in PLAIN.items():
            if (value := said.get(f"llama.{key}", known[0])) not in known:
                raise UserError(f"{file}: llama.{key}={value!r} is not implemented; known: {known[0]!r}")
        self.config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "float32",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            **{theirs: _short(self.need(f"llama.{ours}")) for theirs, ours in SIZES.items()},
            # The key is optional in llama.cpp, with this default.
            "rope_theta": _short(said.get("llama.rope.freq_base", 10000.0)),
        }
        whole = self.config["hidden_size"] // self.config["num_attention_heads"]
        self.config["head_dim"] = said.get("llama.attention.key_length", whole)
        if (turned := said.get("llama.rope.dimension_count", self.config["head_dim"])) != self.config["head_dim"]:
            raise UserError(
                f"{file}: llama.rope.dimension_count={turned} of a head is not implemented; known: all of it"
            )
        names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
        keys = {role: f"tokenizer.ggml.{name}_token_id" for role, name in names.items()}
        self.ids = {role: int(said[key]) for role, key in keys.items() if key in said}

    def need(self, key: str) -> Any:
        if key not in self.said:
            raise UserError(f"{self.file}: {key} is missing")
        return self.said[key]

    def name(self, name: str) -> str:
        stem, _, kind = name.rpartition(".")
        parts = stem.split(".")
        if kind == "weight" and stem in TOP:
            return f"{TOP[stem]}.weight"
        if kind == "weight" and len(parts) == 3 and parts[0] == "blk" and parts[2] in LAYER:
            return f"model.layers.{int(parts[1])}.{LAYER[parts[2]]}.weight"
        raise UserError(f"{self.file}: the tensor {name} has no place in a LLaMA")

    def tokenizer(self) -> tokenizers.Tokenizer:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

        kind, split = self.need("tokenizer.ggml.model"), self.said.get("tokenizer.ggml.pre", "default")
        if kind != "gpt2" or split not in SPLITS:
            raise UserError(
                f"{self.file}: tokenizer.ggml.model={kind!r} with pre={split!r} is not implemented; "
                f"known: 'gpt2' with {', '.join(SPLITS)}"
            )
        tokens = self.need("tokenizer.ggml.tokens")
        merges = [tuple(pair.split(" ", 1)) for pair in self.need("tokenizer.ggml.merges")]
        inner = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        level = pre_tokenizers.ByteLevel(add_prefix_space=bool(self.said.get("tokenizer.ggml.add_space_prefix", False)))
        # llama.cpp's split `smollm` sets every digit apart before it splits as GPT-2 does.
        digits = [pre_tokenizers.Digits(individual_digits=True)] if split == "smollm" else []
        inner.pre_tokenizer = pre_tokenizers.Sequence([*digits, level]) if digits else level
        inner.decoder = decoders.ByteLevel()
        types = self.said.get("tokenizer.ggml.token_type", [])
        for i, of in enumerate(types):
            if of in (CONTROL, USER_DEFINED):
                # Looked for in the text as it is: a token that is not special is `normalized` by default in tokenizers.
                inner.add_tokens([AddedToken(tokens[i], special=of == CONTROL, normalized=False)])
        if self.said.get("tokenizer.ggml.add_bos_token") and "bos" in self.ids:
            first = tokens[self.ids["bos"]]
            pair = f"{first}:0 $A:0 {first}:1 $B:1"
            inner.post_processor = processors.TemplateProcessing(
                single=f"{first} $A", pair=pair, special_tokens=[(first, self.ids["bos"])]
            )
        return inner

    def tokenizer_config(self) -> dict[str, Any]:
        tokens = self.said["tokenizer.ggml.tokens"]
        found = {
            # Without it transformers takes the class of the type, and LlamaTokenizer puts
            # SentencePiece's Metaspace in the split's place.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": self.config["max_position_embeddings"],
            **{f"{role}_token": tokens[i] for role, i in self.ids.items()},
        }
        if template := self.said.get("tokenizer.chat_template"):
            found["chat_template"] = template
        return found


def _halves(weight_OD: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head from neighbours in pairs, as llama.cpp rotates them, to a first and a second half."""
    out, dim = weight_OD.shape
    return weight_OD.reshape(heads, out // heads // 2, 2, dim).swapaxes(1, 2).reshape(out, dim)


def _short(value: T) -> T | float:
    """A float32 by its shortest name: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
