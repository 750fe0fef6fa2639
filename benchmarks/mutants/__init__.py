"""Mutation testing: makes small systematic changes of the source and counts those that `llmlab check` and the tests notice.

A mutant is the source with one change. To ask a mutant, or a file, is to run on it the checks (of `llmlab check`) or tests
that reach its lines; one that fails kills the mutant. The baseline of a file is what the unchanged file is asked.

cosmic-ray starts a command for each mutant, and mutmut runs pytest, not `llmlab check`. Here the imports of torch, Lightning,
Hydra and transformers take 5 s of CPU, where a mutant that is noticed lives for 0.6 s: so one process imports them and forks a
child for each mutant, in which imports give the changed source. The working tree is never written to. Linux only: fork is
not safe elsewhere.
"""
