#!/usr/bin/env bash
# numpy 2.4.6, Linux: many small ndarray.tofile calls to an open file raise nothing when the file can't grow, and the file
# lacks their bytes; one large call raises, and so does file.write of the same arrays.
#
# Behaviour. tofile writes to a C FILE of its own, made of a duplicate of the file's descriptor, with fwrite. What fits its
# buffer is only written when that FILE is closed, at the end of each call, and an error of that is not looked at. So on a full
# disk, or past a limit on a file's size as here, a call for less than a buffer of bytes reports nothing. An array of more
# than that fails within fwrite, and the call raises.
#
# Output seen (the file may grow to 100,000 bytes):
#   1,000 times a.tofile(f), 1,000 bytes each: no error, the file has 100,000 of 1,000,000 bytes
#   1,000 times f.write(a), 1,000 bytes each:  OSError: [Errno 27] File too large
#   once b.tofile(f), 1,000,000 bytes:         OSError: 250000 requested and 25000 written
#
# One would have guessed that tofile either writes all or raises, as file.write does and as its own error for large arrays
# says. It matters for whoever writes a large array piece by piece: the file is short, and the first to learn of it is who
# maps it later ("mmap length is greater than file size").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os
import resource
import signal

import numpy as np

LIMIT = 100_000
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG, as on a full disk with ENOSPC
resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
a, b = np.arange(250, dtype=np.int32), np.arange(250_000, dtype=np.int32)


def write(what, name, times, one):
    try:
        with open(name, "wb") as f:
            for _ in range(times):
                one(f)
        error = None
    except OSError as e:
        error = e
    size = os.path.getsize(name)
    said = f"no error, the file has {size:,} of 1,000,000 bytes" if error is None else f"OSError: {error}"
    print(f"{what:42} {said}")
    return error is None, size


small = write("1,000 times a.tofile(f), 1,000 bytes each:", "small", 1000, a.tofile)
written = write("1,000 times f.write(a), 1,000 bytes each:", "written", 1000, lambda f: f.write(a))
large = write("once b.tofile(f), 1,000,000 bytes:", "large", 1, b.tofile)
ok = small == (True, LIMIT) and not written[0] and not large[0]
print("as described" if ok else "not as described: it has changed")
raise SystemExit(not ok)
PYTHON
