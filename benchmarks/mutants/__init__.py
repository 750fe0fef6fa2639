"""Mutation testing: changes the source in small systematic ways and counts the changes that `llmlab check` and the tests see.

mutmut and cosmic-ray change the file on disk and start the tests anew for each mutant. Here the imports of torch, Lightning and
Hydra alone take longer than most mutants live, so a process that has them forks one child per mutant.
"""
