"""Mutation testing: changes the source in small systematic ways and counts the changes that `llmlab check` and the tests see.

cosmic-ray starts a command for each mutant, and mutmut runs pytest, not `llmlab check`. Here the imports of torch, Lightning,
Hydra and transformers take 5 s of CPU, where a mutant that is noticed lives for 0.6 s: so one process imports them and forks a
child for each mutant, whose imports are served the changed source. The working tree is never written to. Linux only: fork is
not safe elsewhere.
"""
