"""Files of scores."""

import pytest

from llmlab.scoring import run


@pytest.mark.parametrize(
    "words", ["reward=number", "reward.field=a/b reward=number", "models.reward=/a/run reward=number"]
)
def test_scores_are_in_the_runs_folder_by_the_rewards_name_wherever_it_is_typed(words, tmp_path, monkeypatch):
    monkeypatch.setattr("llmlab.runs.folder.home", lambda run: tmp_path)
    at = run.keep("a", {"reward_by": words, "data": "some prompts.jsonl"}, [])  # type: ignore[typeddict-item]
    assert at == tmp_path / "scores/number-some_prompts.jsonl"
