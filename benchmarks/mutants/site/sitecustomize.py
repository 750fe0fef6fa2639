"""Found by the Python processes that a mutant's test starts: they import the mutant too."""

from mutants.serve import serve_in_child

serve_in_child()
