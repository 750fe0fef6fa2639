import sys

from llmlab.check.twins.observers import OBSERVERS
from twins.record import write

for slot in sys.argv[1:] or OBSERVERS:
    write(slot)
    print(slot, flush=True)
