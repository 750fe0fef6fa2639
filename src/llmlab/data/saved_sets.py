"""Folders that Hugging Face's `datasets` has saved: which of their files hold rows, and which split is read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TypedDict

from llmlab.errors import UserError
from llmlab.json_files import read_json

STATE, SPLITS, ABOUT = "state.json", "dataset_dict.json", "dataset_info.json"
TRAIN = "train"
NO_ROWS = "no rows of a saved data set"
OTHER_SPLIT = "another split of a saved data set"


class _File(TypedDict):
    filename: str


class _State(TypedDict):
    _data_files: list[_File]


class _Splits(TypedDict):
    splits: list[str]


def left_out(folder: str, names: Collection[str]) -> dict[str, str]:
    """Entries of a folder that are not read, and why; none of a folder that is no saved data set.

    Of one with splits `train` is read, or the only one. UserError where neither is there.
    """
    if SPLITS in names:
        about: _Splits = read_json(Path(folder, SPLITS), _Splits)
        splits = about["splits"]
        if TRAIN not in splits and len(splits) != 1:
            raise UserError(
                f"data.path={folder}: a saved data set of the splits {', '.join(splits)}; name the folder of one"
            )
        wanted = TRAIN if TRAIN in splits else splits[0]
        return {n: OTHER_SPLIT for n in names if n in splits and n != wanted} | {SPLITS: NO_ROWS}
    if STATE in names and ABOUT in names:
        # `map` leaves tables of its own beside those of the data set.
        state: _State = read_json(Path(folder, STATE), _State)
        rows = {f["filename"] for f in state["_data_files"]}
        if missing := sorted(rows.difference(names)):
            raise UserError(f"data.path={folder}: {missing[0]}, which {STATE} names, is not there")
        return {n: NO_ROWS for n in names if n not in rows}
    return {}
