"""The folder of a checkpoint: hf=FOLDER, hf=NAME (brought by `llmlab fetch`) or hf=ORG/NAME (downloaded). No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llmlab.errors import UserError
from llmlab.files import expanded

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
WANTED = ("*.json", "*.safetensors", "*.jinja")


def locate(name: str, wanted: Sequence[str] = WANTED) -> Path:
    """The folder of a checkpoint, downloaded (the files `wanted`) if it has to be; UserError where there is none."""
    folder = expanded(name)
    # A folder comes first, as in transformers' from_pretrained, so that ORG/NAME may be
    # a path. Path("") is the current folder.
    if name and folder.is_dir():
        return folder
    from llmlab.hub import fetch

    if (model := fetch.find_model(name)) is not None:
        if (there := fetch.cached_folder(model)) is not None:
            return there
        raise UserError(f"hf={name} is not in the cache, or no longer whole; llmlab fetch {model.name} brings it")
    if REPOSITORY.fullmatch(name):
        return download(name, wanted)
    raise UserError(f"hf={name}: there is no such folder")


def download(name: str, wanted: Sequence[str] = WANTED) -> Path:
    """Files of ORG/NAME or ORG/NAME@REVISION, in huggingface_hub's own cache; all that a checkpoint needs unless said."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise UserError(
            f"hf={name}: there is no such folder, and to download it huggingface_hub is missing: pip install 'llmlab[hf]'"
        ) from None
    repository, _, revision = name.partition("@")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=list(wanted),
                # fnmatch's `*` matches slashes too: without "*/*" the pattern *.safetensors would
                # fetch onnx/ and other copies of the weights.
                ignore_patterns=["*/*"],
            )
        )
    # Before RepositoryNotFoundError, whose subclass it is (huggingface_hub 2.4).
    except errors.GatedRepoError:
        raise UserError(f"hf={name} is gated: accept its terms on its page, then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"hf={name}: there is no such folder and no such repository (a private one needs HF_TOKEN)"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"hf={name}: {repository} has no revision {revision or 'main'}") from None
    except errors.HFValidationError as e:
        raise UserError(f"hf={name}: {str(e).splitlines()[0]}") from None
    except Exception as e:  # of several libraries: no network, a proxy, a full disk, an answer that is none
        # Without a network it is a LocalEntryNotFoundError about its own cache; the cause says what failed.
        reason: BaseException = e.__cause__ or e
        said = (str(reason).splitlines() or [""])[0] or type(reason).__name__
        raise UserError(f"hf={name} could not be downloaded, and no copy is here: {said}") from e
