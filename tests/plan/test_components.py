"""Parameters of published models from a bare config.json, against counts that others have made."""

import json
import os
from pathlib import Path

import pytest
from torch import nn

from llmlab.hub import load
from llmlab.hub.families import entries
from llmlab.model.build import assemble
from llmlab.model.flops import count_parameters
from llmlab.plan.components import component_lines, groups

PARITY = Path(os.environ.get("LLMLAB_PARITY", Path(__file__).parents[3] / "shared" / "parity"))
STATED = {"MT5Config"}  # published files say whether the head is tied; the rows leave it to a default that has changed


@pytest.fixture(scope="module")
def rows():
    file = PARITY / "param_counts.json"
    if not file.is_file():
        pytest.skip(f"not run: there is no {file}; LLMLAB_PARITY names its folder")
    return [row for row in json.loads(file.read_text()) if row["sure"].startswith("sure")]


def bare(folder, config_class, architecture, **values):
    """A folder with a config.json alone, which says what a published one does."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    model_type = next(kind for kind in entries() if CONFIG_MAPPING_NAMES.get(kind) == config_class)
    folder.mkdir()
    config = {"model_type": model_type, "architectures": [architecture], **values}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow  # 130 config.json, each composed as it would be typed: a minute
def test_every_row_that_is_sure(rows, tmp_path):
    wrong = []
    for i, row in enumerate(rows):
        said = {"tie_word_embeddings": row["tied"]} if row["config_class"] in STATED else {}
        folder = bare(tmp_path / str(i), row["config_class"], row["model_class"], **row["config"], **said)
        counts = count_parameters(assemble(load.describe(folder, bare=True).spec))
        if (counts.total, counts.active) != (row["total"], row["active"]):
            wrong.append((row["name"], row["model_class"], row["total"], counts.total, row["active"], counts.active))
    assert not wrong, wrong
    assert len(rows) >= 130


def test_bert_base_by_component(tmp_path):
    folder = bare(tmp_path / "bert", "BertConfig", "BertModel")
    model = assemble(load.describe(folder, bare=True).spec)
    found = {group.name: group for group in groups(model)}
    assert {name: group.total for name, group in found.items()} == {
        "embedding": (30522 + 2) * 768 + 2 * 768,
        "positions": 512 * 768,
        "layers 0-11": 12 * (4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768),
        "head pooled": 768 * 768 + 768,
    }
    assert sum(group.total for group in found.values()) == 109_482_240
    lines = {line.name: (line.shape, line.total) for line in found["layers 0-11"].lines}
    assert lines["attention.q"] == ("768 x 768 + 768", 590_592)


DENSE = ("albert", "bart", "bert", "chatglm1", "electra", "glm_2022", "gpt1", "modernbert", "mpnet", "mt5", "xlnet")
SPARSE = ("qwen2_moe", "deepseek_v3", "qwen3_30b_a3b")
BIASES = ("position@kinds.local.position=t5_bias", "position@kinds.global.position=t5_bias")
TWO_TABLES = ("model=gemma3", "kernel=eager", "model.n_layers=6", *BIASES, "kinds.global.position.buckets=64")
SUMMED = [*((f"model={name}",) for name in (*DENSE, *SPARSE)), TWO_TABLES]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", SUMMED, ids=lambda overrides: overrides[0].removeprefix("model="))
def test_components_add_up(overrides):
    """Lines to their group's parameters, groups to the model's, all and active."""
    from llmlab.config.compose import compose
    from llmlab.config.layout import resolve

    model = assemble(resolve(compose(overrides)))
    counts, found = count_parameters(model), groups(model)
    assert sum(line.total * group.times for group in found for line in group.lines) == counts.total
    assert sum(group.total for group in found) == counts.total == sum(p.numel() for p in model.parameters())
    assert sum(group.active for group in found) == counts.active
    assert (counts.active < counts.total) is (overrides[0].removeprefix("model=") in SPARSE)


def test_modules_of_another_shape_are_lines_of_their_own():
    tables = nn.ModuleList([nn.Embedding(32, 4), nn.Embedding(64, 4), nn.Embedding(32, 4)])
    assert [(line.shape, line.total) for line in component_lines(tables)] == [("2 x 32 x 4", 256), ("64 x 4", 256)]
