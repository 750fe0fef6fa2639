"""Records packed into windows: which stand together is fixed by their lengths alone, before a run begins."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from llmlab.data.records import RecordSamples, Sample


class Packs:
    """Sample i: the records of window i, a list, which together have at most `seq_len` tokens."""

    def __init__(self, records: RecordSamples):
        self.records, self.seq_len, self.pad = records, records.seq_len, records.pad
        self.documents = True
        self.windows = pack(records.lengths, self.seq_len)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, i: int) -> list[Sample]:
        return [self.records[j] for j in self.windows[i]]

    def spread(self, n: int) -> list[int]:
        """The numbers of n windows from all of them, which are about equally full."""
        return [i * len(self) // n for i in range(n)]

    @property
    def cut(self) -> int:
        return self.records.cut

    def told(self, at: str) -> list[str]:
        return self.records.told(at)

    @property
    def lost(self) -> int:
        return self.records.lost

    @property
    def tokens_per_sample(self) -> float:
        return float(self.records.lengths.sum()) / max(1, len(self))


def pack(lengths: Sequence[int] | np.ndarray, room: int) -> list[list[int]]:
    """The items of each window, whose lengths add up to at most `room`: best-fit decreasing (Johnson 1974).

    Every item, in the order of falling length, goes to the window with the least room that takes it. Windows come in the
    order of their first item.
    """
    # stable: numpy's default has versions for a CPU's vector instructions, which break ties otherwise.
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    windows: list[list[int]] = []
    left: dict[int, list[int]] = {}  # windows by the room that they have
    rooms: list[int] = []  # its keys, rising: at most `room` of them, so that an item costs log(room)
    for item in order:
        length = int(lengths[item])
        # The least room that takes it; in sorted rooms 100,000 records take 0.2 s.
        at = bisect_left(rooms, length)
        if at == len(rooms):
            windows.append([item])
            mine, free = len(windows) - 1, room - length
        else:
            free = rooms[at]
            mine = left[free].pop()
            if not left[free]:
                del left[free], rooms[at]
            windows[mine].append(item)
            free -= length
        if free > 0:
            if free not in left:
                left[free] = []
                insort(rooms, free)
            left[free].append(mine)
    # In the file's order within a window, whatever order the lengths put them in.
    return sorted(sorted(w) for w in windows)
