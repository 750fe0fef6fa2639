"""Lines of progress outside of a terminal."""

from llmlab.training.progress import Progress, duration


def test_outside_of_a_terminal_a_line_now_and_then(capsys):
    progress = Progress(1000)
    for step in range(1, 500):
        progress.update(step, 2.5, 1000.0, 100)
    progress.say("step 500  validation loss 2.4")
    progress.update(501, 0.0, None, None, reward=0.25, force=True)
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["step 1/1,000  loss 2.5000  1,000 tokens/s  1:40 left", "step 500  validation loss 2.4"]
    assert out[2:] == ["step 501/1,000  loss 0.0000  reward 0.2500"]


def test_durations():
    assert [duration(s) for s in (4.4, 59.6, 187, 7500)] == ["4 s", "1:00", "3:07", "2:05:00"]
