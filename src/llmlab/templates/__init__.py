"""Files that `llmlab new SLOT NAME` writes: for each slot a part (SLOT.py) and its test (test_SLOT.py), with other names."""
