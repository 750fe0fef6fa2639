"""Numbers of config.json that can't be meant: one line that names the key, for every key that a family reads."""

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest

from llmlab.errors import UserError
from llmlab.hub import config_ranges
from llmlab.hub.families import entries
from llmlab.hub.load import describe

STRINGS = ("64", "x")
NEVER: tuple[tuple[tuple[str, ...], tuple[Any, ...]], ...] = (
    (("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
      "vocab_size", "max_position_embeddings"), (0, -1, 1e308, 64.5, True, 10**12, [64], *STRINGS)),
    (("rms_norm_eps",), (-1e-6, math.nan, math.inf, 2.0, True, *STRINGS)),
    (("attention_dropout",), (2, -0.1, math.nan, True, "0.1")),
    (("rope_theta",), (0, -1, math.nan, 1e308, True, "10000")),
    (("eos_token_id", "bos_token_id"), (-1, "x", 1.5, True, 10**12)),
    (("pad_token_id",), (-2, "x", True, 10**12)),
    (("eos_token_id",), ([1, "x"], [True])),
)  # fmt: skip
OTHERS = {
    ("gemma2", "final_logit_softcapping"): (0, -30.0, math.nan, "30"),
    ("gemma2", "attn_logit_softcapping"): (0, -1),
    ("gemma2", "query_pre_attn_scalar"): (0, -256),
    ("mistral", "sliding_window"): (0, -1, 4.5, True, "4096"),
    ("gemma3_text", "sliding_window"): (0, -1),
    ("modernbert", "local_attention"): (0, -2, 1),
    ("gpt_neox", "rotary_pct"): (0, -0.5, 1.5, "0.5", None),
    ("gpt_neox", "rotary_emb_base"): (0, -1, None),
    ("phi", "partial_rotary_factor"): (0, -0.5, 1.5, "0.5"),
    ("gemma3_text", "rope_local_base_freq"): (0, -1, None),
    ("modernbert", "global_rope_theta"): (0, -1, None),
    ("mixtral", "num_local_experts"): (0, -1, True, "8"),
    ("deepseek_v3", "q_lora_rank"): (0, -1),
    ("bert", "type_vocab_size"): (-1, 1.5),
    ("t5", "num_decoder_layers"): (0, -1),
    ("t5", "layer_norm_epsilon"): (-1, math.nan),
    ("bart", "encoder_layers"): (0, -1, 20_000),
    ("gpt2", "n_inner"): (0, -1),
}
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE = [
    ({"rope_type": "llama3"}, "needs factor, low_freq_factor, high_freq_factor"),
    *(({**SCALED, "factor": x}, "factor=") for x in (0, -1, "2", 1e308, math.nan, True, None, [2])),
    *(({**SCALED, "low_freq_factor": x}, "low_freq_factor=") for x in (0, 4.0, "1")),
    *(({**SCALED, "original_max_position_embeddings": x}, "original_max_position_embeddings=") for x in (0, 1.5, "8")),
    *(({"rope_type": "yarn", "factor": 2.0, "attention_factor": x}, "attention_factor=") for x in (0, -1, "1")),
    *(({"rope_type": "yarn", "factor": 2.0, "beta_fast": x}, "beta_") for x in (0.5, -1, "32")),
    *(
        ({"rope_type": "longrope", "short_factor": x, "long_factor": [1.0]}, "short_factor")
        for x in ("1", [0], [-1], [])
    ),
    *(({"rope_theta": x}, "rope_theta=") for x in (0, -1, None, "1e4", math.inf)),
]


def refused(folder, config: Mapping[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as e:
        describe(folder, bare=True)
    assert str(e.value).startswith(f"{folder / 'config.json'}: ")
    assert len(str(e.value).splitlines()) == 1
    return str(e.value)


@pytest.mark.parametrize(("keys", "values"), NEVER)
def test_a_number_that_is_never_meant_is_named(keys, values, tmp_path):
    for key in keys:
        for value in values:
            assert f"{key}=" in refused(tmp_path, {"model_type": "llama", key: value}), value


@pytest.mark.parametrize(("family", "key"), OTHERS)
def test_and_those_of_other_families(family, key, tmp_path):
    for value in OTHERS[family, key]:
        assert f"{key}=" in refused(tmp_path, {"model_type": family, key: value}), value


@pytest.mark.parametrize("dialect", ["rope_scaling", "rope_parameters"])
def test_numbers_of_rope(dialect, tmp_path):
    for block, said in ROPE:
        assert said in refused(tmp_path, {"model_type": "llama", dialect: block}), block


class Recorded(dict):
    """What a family asks of it."""

    def __init__(self, values: Mapping[str, Any]):
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)


CHECKED_BY_VALUE = {"expansion_ratio", "extra_pos_embeddings", "num_ln_in_parallel_attn", "rope_ratio", "logit_scale",
                    "pre_seq_len", "quantization_bit"}  # fmt: skip  # by `expect`


@pytest.mark.parametrize("model_type", sorted(entries()))
def test_every_number_that_a_family_reads_has_a_range(model_type):
    entry = entries()[model_type]
    needed = {
        "relative_attention": True,
        "position_biased_input": False,
        "share_att_key": True,
        "pos_att_type": ["c2p"],
    }
    c = Recorded({**entry.defaults, **(needed if model_type == "deberta-v2" else {}), "model_type": model_type})
    entry.read(c)
    for head in entry.architectures.values():
        head.heads(c)
    for key in {*c.asked, *entry.defaults} - CHECKED_BY_VALUE:
        value = entry.defaults.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            rule = config_ranges.number(key)
            assert rule is not None and rule.holds(value), key
    config_ranges.check(entry.defaults, entry.defaults)
