"""Guesses at keys: other tools' words point to keys that exist, in every command."""

import dataclasses
import re

import pytest
from omegaconf import OmegaConf

import llmlab
from llmlab.commands import cli
from llmlab.commands.arguments import parse
from llmlab.commands.chat import Arguments as Chat
from llmlab.commands.eval import Arguments as Evaluate
from llmlab.commands.export import Arguments as Export
from llmlab.commands.generate import Arguments as Generate
from llmlab.commands.plan import Arguments as Plan
from llmlab.commands.report import Arguments as Report
from llmlab.commands.runs import Arguments as Runs
from llmlab.config import guess
from llmlab.config.aliases import ALIASES, ARGUMENTS, NOTES
from llmlab.config.choices import choices, groups
from llmlab.errors import UserError

COMMANDS = (Generate, Chat, Evaluate, Export, Plan, Report, Runs)


@pytest.fixture(scope="module")
def config():
    return llmlab.compose(["logger=[wandb,tensorboard]"])


def test_each_word_points_to_a_key_or_a_choice_that_exists(config):
    keys = {*guess.paths(config), "hydra.run.dir"}
    for word, targets in ALIASES.items():
        for target in targets:
            group, equals, name = target.partition("=")
            if equals:
                assert group in groups() and (name == "NAME" or name in choices(group)), (word, target)
            else:
                assert target in keys, (word, target)
    assert set(NOTES) <= set(ALIASES)


def test_no_word_hides_a_key_or_a_group(config):
    assert not set(ALIASES) & {*groups(), *map(str, config)}


EXAMPLES = """
hidden_size num_hidden_layers n_layer n_head num_attention_heads intermediate_size block_size max_iters lr epochs n_embd
learning_rate weight_decay per_device_train_batch_size gradient_accumulation_steps max_position_embeddings vocab_size
warmup_iters warmup_steps max_steps eval_interval log_interval save_steps dtype bf16 fp16 compile device dropout beta1 betas
tie_word_embeddings rope_theta rms_norm_eps grad_clip output_dir num_train_epochs
"""


@pytest.mark.parametrize("word", EXAMPLES.split())
def test_words_of_transformers_nanogpt_and_litgpt(word, config):
    hint = guess.at_root(word, [*map(str, config), *groups()], config, choices)
    (meant,) = re.findall(r"did you mean (.*?)\?", hint)
    for target in meant.split(" or "):
        key = target.partition("=")[0]
        parent, _, last = key.rpartition(".")
        assert key in groups() or key == "hydra.run.dir" or last in OmegaConf.select(config, parent), hint
    assert len(hint) < 300


def test_keys_that_may_be_are_found_without_composing(config):
    none_chosen = {"mask", "adapter", "alignment", "reward"}  # parts
    assert set(guess.paths(config)) - none_chosen <= set(guess.declared())


def test_the_words_of_arguments_point_to_arguments():
    fields = {f.name for command in COMMANDS for f in dataclasses.fields(command)}
    assert {t for targets in ARGUMENTS.values() for t in targets} <= fields


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (Generate, "--prompt hi", "--prompt: keys have no dashes, type prompt=hi"),
        (Generate, "--max_new_tokens=5", "--max_new_tokens: keys have no dashes, type max_new=5"),
        (Generate, "--top-k 3", "--top-k: keys have no dashes, type top_k=3"),
        (Generate, "num_samples=3", "num_samples: there is no such key of llmlab x; did you mean num?"),
        (Evaluate, "model=x", "model: there is no such key of llmlab x; did you mean run or hf?"),
        (Export, "run=a output=b", "output: there is no such key of llmlab x; did you mean to?"),
        (Plan, "gpu=a100", "gpu: there is no such key of llmlab x; did you mean device?"),
        (Runs, "--limit 3", "--limit: keys have no dashes, type limit=3"),
    ],
)
def test_arguments(command, words, said):
    with pytest.raises(UserError) as e:
        parse(words.split(), command, "x")
    assert str(e.value) == said


def test_a_part_in_a_slots_place(capsys):
    assert cli.run(["parts", "rope"]) == 1
    assert "rope is a position: llmlab parts position, or position=rope" in capsys.readouterr().err
    assert cli.run(["parts", "--attention"]) == 1
    assert "type llmlab parts attention" in capsys.readouterr().err


def test_heads_are_said_where_one_looks(capsys):
    assert cli.run(["parts", "head"]) == 0
    shown = capsys.readouterr().out
    assert "head=NAME" in shown and "heads.ROLE=NAME" in shown and " head." not in shown
    assert cli.run(["train", "--help"]) == 0
    assert "heads.ROLE=NAME" in capsys.readouterr().out


def test_a_head_is_typed_with_or_without_a_plus():
    for words in (
        ["head@heads.tokens=lm_bias"],
        ["+head@heads.tokens=lm_bias"],
        ["model=phi", "head@heads.tokens=lm_bias"],
    ):
        assert llmlab.compose([*words, "heads.tokens.bias=true"]).heads.tokens._part_ == "lm"
