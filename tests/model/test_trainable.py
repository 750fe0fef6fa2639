"""What learns: words against the parameters of real models, and what one is told where they do not fit."""

import pytest
from families import spec, tiny

from llmlab.errors import UserError
from llmlab.model import roles, trainable
from llmlab.model.build import assemble
from llmlab.model.trainable import Filter


def model(family, words=None):
    made = assemble(spec(*tiny(family)))
    Filter.from_words(words).apply(made)
    return made


def learning(family, *words):
    return {path for path, _, _ in roles.learning(model(family, words))}


def everything(family):
    return roles.parameters(model(family))


def test_without_words_everything_learns():
    made = model("llama3")
    assert all(p.requires_grad for p in made.parameters())
    assert len(roles.learning(made)) == len(roles.parameters(made))


BY_HAND = {
    ("heads",): lambda path, role: path.startswith("heads."),
    ("bias",): lambda path, role: role == "bias",
    ("q", "v"): lambda path, role: role in ("q", "v"),
    ("-embed", "-position"): lambda path, role: role not in ("embed", "position"),
    ("stacks.main.layers.1",): lambda path, role: path.startswith("stacks.main.layers.1."),
    ("*.layers.*.ffn", "heads"): lambda path, role: ".ffn." in path or path.startswith("heads."),
    ("stacks", "-*.layers.0", "-norm"): lambda path, role: (
        path.startswith("stacks.") and ".layers.0." not in path and role != "norm"
    ),
}


@pytest.mark.parametrize("words", BY_HAND)
def test_words_mean_roles_and_paths(words):
    wanted = {path for path, _, role in everything("bert") if BY_HAND[words](path, role)}
    assert wanted and learning("bert", *words) == wanted


def test_a_shared_table_is_one_parameter_under_its_first_path():
    paths = learning("t5", "-stacks.encoder.embedding")
    assert paths == {path for path, _, _ in everything("t5")} - {"stacks.encoder.embedding.table.weight"}


@pytest.mark.parametrize(
    ("family", "words", "said"),
    [
        ("llama3", ["hedas"], r"train\.learns: hedas matches no parameter of this model; did you mean heads.*\?"),
        ("llama3", ["layers.1"], r".* layers\.1 matches no .*; did you mean stacks\.main\.layers\.1\?"),
        ("t5", ["layers.1"], r".*did you mean stacks\.encoder\.layers\.1 or stacks\.decoder\.layers\.1\?"),
        ("llama3", ["stacks.main.layers.7"], r".*stacks\.main\.layers\.7 .*did you mean stacks\.main\.layers\..*\?"),
        (
            "llama3",
            ["heads", "-zzzzz"],
            r".*zzzzz matches no parameter.*; name roles \(embed, q, .*\), heads, stacks or .*",
        ),
        ("llama3", ["bias"], r".*bias is a role that no parameter of this model has; it has embed, q, k, v, .*"),
        ("gpt2", ["heads"], r".*heads matches no parameter: the heads of this model have none but .*; add embed"),
        (
            "llama3",
            ["q", "-stacks"],
            r"train\.learns=\[q,-stacks\]: it freezes every parameter, so nothing would learn; .*",
        ),
        ("bert", ["stacks.main.layers.1.block", "-norm", "-bias"], r".*: it freezes every parameter.*"),
    ],
)
def test_words_that_do_not_fit_are_said_in_a_line(family, words, said):
    with pytest.raises(UserError, match=f"^{said}$") as error:
        model(family, words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["heads"], "heads"),
        (["q"], "stacks.main.layers.0-1.attention.q"),
        (["-embed", "-norm"], "stacks.main.layers.0-1.attention, stacks.main.layers.0-1.ffn, heads"),
        (
            ["norm", "heads", "*.layers.1.ffn"],
            "stacks.main.layers.0-1.block, stacks.main.layers.1.ffn, stacks.main.norm, 1 more",
        ),
    ],
)
def test_the_line_at_a_runs_start(words, names):
    made = model("llama3", words)
    total = sum(p.numel() for p in made.parameters())
    count = sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert trainable.summary(made) == f"learns: {count:,} of {total:,} parameters ({names})"
    assert trainable.summary(model("llama3", ["heads", "stacks"])) == f"learns: all of {total:,} parameters"
