"""The ladder of sizes is fair between families, and published sizes have the published numbers of parameters."""

import pytest
from families import FAMILIES, QUICK, mostly_slow, spec

from llmlab.config.compose import conf_dir
from llmlab.model.build import assemble
from llmlab.model.flops import count_parameters

RUNGS = sorted(p.stem for p in (conf_dir() / "size").glob("*.yaml"))


def active_in_layers(model) -> int:
    """Parameters that a token meets in the layers, each as often as it is run."""
    total = 0
    for stack in model.stacks.values():
        for i in stack.spec.execute:
            layer = stack.layers[i]
            total += sum(p.numel() for p in layer.parameters())
            position = stack.positions[stack.position_of[i]]
            total += sum(p.numel() for p in position.parameters()) if position.scope == "layer" else 0
            if layer.routed:
                experts = sum(p.numel() for p in layer.ffn.experts.parameters())
                total -= experts * (layer.ffn.n_experts - layer.ffn.per_token) // layer.ffn.n_experts
    return total


def test_there_is_a_ladder():
    assert {"nano", "micro", "mini", "small"} <= set(RUNGS)


ALIKE = [pytest.param(QUICK, "nano", id="some-nano")]
ALIKE += [pytest.param(FAMILIES, r, id=r, marks=pytest.mark.slow) for r in RUNGS if r in ("nano", "xl")]


@pytest.mark.parametrize(("families", "rung"), ALIKE)
def test_at_a_rung_families_are_alike(families, rung):
    counts = {}
    for family in families:
        model = assemble(spec(f"model={family}", f"size={rung}"))
        layers = sum(len(stack.spec.execute) for stack in model.stacks.values())
        counts[family] = (layers, model.sizes.dim, active_in_layers(model))
    assert len({c[:2] for c in counts.values()}) == 1, counts
    active = [c[2] for c in counts.values()]
    assert max(active) <= 1.03 * min(active), {f: round(c[2] / min(active), 4) for f, c in counts.items()}


# Parameters (total, active a token), tied weights once: of the configurations that the authors released, counted from
# their config.json by the reference implementation (Qwen3, DeepSeek-V3: also stated in arXiv:2505.09388, arXiv:2412.19437).
PUBLISHED = {
    "gpt2_small": (124_439_808, 124_439_808),
    "gpt2_medium": (354_823_168, 354_823_168),
    "gpt2_xl": (1_557_611_200, 1_557_611_200),
    "gpt_neox_20b": (20_554_567_680, 20_554_567_680),
    "pythia_160m": (162_322_944, 162_322_944),
    "pythia_1_4b": (1_414_647_808, 1_414_647_808),
    "falcon_7b": (6_921_720_704, 6_921_720_704),
    "falcon_40b": (41_303_293_952, 41_303_293_952),
    "falcon_rw_1b": (1_311_625_216, 1_311_625_216),
    "phi_1_5": (1_418_270_720, 1_418_270_720),
    "phi_2": (2_779_683_840, 2_779_683_840),
    "chatglm1_6b": (6_173_286_400, 6_173_286_400),
    "glm_2022_base": (109_338_624, 109_338_624),
    "glm_2022_10b": (9_880_682_496, 9_880_682_496),
    "gpt1_117m": (116_534_784, 116_534_784),
    "gpt_neo_125m": (125_198_592, 125_198_592),
    "gpt_neo_2_7b": (2_651_307_520, 2_651_307_520),
    "gpt3_175b": (174_604_259_328, 174_604_259_328),
    "opt_125m": (125_239_296, 125_239_296),
    "opt_350m": (331_196_416, 331_196_416),
    "opt_6_7b": (6_658_473_984, 6_658_473_984),
    "bloom_560m": (559_214_592, 559_214_592),
    "bloom_7b1": (7_069_016_064, 7_069_016_064),
    "bloom_176b": (176_247_271_424, 176_247_271_424),
    "mpt_7b": (6_649_286_656, 6_649_286_656),
    "stablelm_3b": (2_795_443_200, 2_795_443_200),
    "stablelm_2_1_6b": (1_644_515_328, 1_644_515_328),
    "baichuan_7b": (7_000_559_616, 7_000_559_616),
    "baichuan_13b": (13_264_901_120, 13_264_901_120),
    "bert_base": (109_514_298, 109_514_298),
    "bert_large": (335_174_458, 335_174_458),
    "xlnet_base": (116_750_336, 116_750_336),
    "xlnet_large": (360_300_800, 360_300_800),
    "albert_base": (11_221_680, 11_221_680),
    "roberta_base": (124_697_433, 124_697_433),
    "roberta_large": (355_412_057, 355_412_057),
    "distilbert_base": (66_985_530, 66_985_530),
    "electra_small": (13_546_682, 13_546_682),
    "electra_base_generator": (33_740_602, 33_740_602),
    "mpnet_base": (109_518_527, 109_518_527),
    "modernbert_base": (149_655_232, 149_655_232),
    "modernbert_large": (395_881_664, 395_881_664),
    "bert_generation_large": (354_452_662, 354_452_662),
    "t5_small": (60_506_624, 60_506_624),
    "t5_base": (222_903_552, 222_903_552),
    "t5_large": (737_668_096, 737_668_096),
    "t5_3b": (2_851_598_336, 2_851_598_336),
    "t5_11b": (11_307_321_344, 11_307_321_344),
    "t5_v1_1_small": (76_961_152, 76_961_152),
    "t5_v1_1_base": (247_577_856, 247_577_856),
    "t5_v1_1_large": (783_150_080, 783_150_080),
    "t5_v1_1_xl": (2_849_757_184, 2_849_757_184),
    "t5_v1_1_xxl": (11_135_332_352, 11_135_332_352),
    "mt5_small": (300_176_768, 300_176_768),
    "mt5_base": (582_401_280, 582_401_280),
    "bart_base": (139_420_416, 139_420_416),
    "bart_large": (406_291_456, 406_291_456),
    "llama3_8b": (8_030_261_248, 8_030_261_248),
    "llama3_70b": (70_553_706_496, 70_553_706_496),
    "llama3_2_1b": (1_235_814_400, 1_235_814_400),
    "llama1_7b": (6_738_415_616, 6_738_415_616),
    "llama1_65b": (65_285_660_672, 65_285_660_672),
    "llama2_7b": (6_738_415_616, 6_738_415_616),
    "llama2_70b": (68_976_648_192, 68_976_648_192),
    "mistral_7b": (7_241_732_096, 7_241_732_096),
    "mistral_7b_v0_3": (7_248_023_552, 7_248_023_552),
    "mixtral_8x7b": (46_702_792_704, 12_879_925_248),
    "qwen2_0_5b": (494_032_768, 494_032_768),
    "qwen2_7b": (7_615_616_512, 7_615_616_512),
    "qwen3_0_6b": (596_049_920, 596_049_920),
    "qwen3_8b": (8_190_735_360, 8_190_735_360),
    "gemma_2b": (2_506_172_416, 2_506_172_416),
    "gemma_7b": (8_537_680_896, 8_537_680_896),
    "gemma2_2b": (2_614_341_888, 2_614_341_888),
    "gemma2_9b": (9_241_705_984, 9_241_705_984),
    "gemma2_27b": (27_227_128_320, 27_227_128_320),
    "deepseek_v2_lite": (15_706_484_224, 2_661_150_208),
    "deepseek_v2_236b": (235_741_434_880, 21_375_800_320),
    "phi3_mini": (3_821_079_552, 3_821_079_552),
    "phi4": (14_659_507_200, 14_659_507_200),
    "olmo_1b": (1_176_764_416, 1_176_764_416),
    "olmo_7b": (6_888_095_744, 6_888_095_744),
    "olmo2_7b": (7_298_617_344, 7_298_617_344),
    "glm_4_9b": (9_399_951_360, 9_399_951_360),
    "glm4_9b_0414": (9_400_279_040, 9_400_279_040),
    "chatglm2_6b": (6_243_584_000, 6_243_584_000),
    "qwen1_7b": (7_721_324_544, 7_721_324_544),
    "qwen1_14b": (14_167_290_880, 14_167_290_880),
    "qwen3_30b_a3b": (30_532_122_624, 3_353_032_704),
    "qwen3_235b_a22b": (235_093_634_560, 22_190_763_520),
    "qwen1_5_moe_a2_7b": (14_315_784_192, 2_689_173_504),
    "gemma3_270m": (268_098_176, 268_098_176),
    "gemma3_1b": (999_885_952, 999_885_952),
    "deepseek_v3_671b": (671_026_404_352, 37_552_282_624),
}
WITHOUT_HEADS = {  # the body alone
    "electra_base": 108_891_648,
    "electra_large": 334_092_288,
    "deberta_v3_base": 183_831_552,
    "deberta_v3_large": 434_012_160,
}
POOLED = {  # the body with its pooler
    "albert_large": 17_683_968,
    "albert_xlarge": 58_724_864,
    "albert_xxlarge": 222_595_584,
    "spanbert_base": 108_310_272,
    "spanbert_large": 333_579_264,
    "minilm_l6": 22_713_216,
}


def test_every_published_size_is_here():
    files = {p.stem for p in (conf_dir() / "model").glob("*.yaml") if "# published" in p.read_text()}
    assert files == set(PUBLISHED) | set(WITHOUT_HEADS) | set(POOLED)


@pytest.mark.parametrize("name", mostly_slow(PUBLISHED, list(PUBLISHED)[::9]))
def test_published_counts(name):
    counts = count_parameters(assemble(spec(f"model={name}")))
    assert (counts.total, counts.active) == PUBLISHED[name]


@pytest.mark.parametrize("name", mostly_slow((*WITHOUT_HEADS, *POOLED), ["albert_large"]))
def test_published_counts_of_the_body(name):
    model = assemble(spec(f"model={name}"))
    pooler = model.sizes.dim * (model.sizes.dim + 1) if name in POOLED else 0
    assert sum(p.numel() for p in model.stacks.parameters()) + pooler == {**WITHOUT_HEADS, **POOLED}[name]
