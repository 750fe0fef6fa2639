"""Parts that a run's first lines and its record name."""

from llmlab.config import layout
from llmlab.config.compose import compose
from llmlab.training.run_header import objective_parts


def test_parts_of_a_record_have_what_the_objective_brings():
    assert objective_parts(layout.resolve(compose(["model=bert"]))) == {
        "mask": "bidirectional",
        "heads.tokens": "mlm",
        "heads.pair": "pooled",
    }
    assert objective_parts(layout.resolve(compose(["model=t5"]))) == {
        "stacks.encoder.mask": "bidirectional",
        "stacks.decoder.mask": "causal",
        "heads.tokens": "lm",
    }
