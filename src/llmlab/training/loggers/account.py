"""The account of Weights & Biases: is there a key, can it be reached; without importing it."""

from __future__ import annotations

import contextlib
import netrc
import os
import socket
from urllib.parse import urlsplit

from llmlab.files import expanded

REACH_SECONDS = 3.0
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


def offline_reason(mode: str) -> str | None:
    """Why a run can't be online: "" where that is wanted; None if nothing speaks against it."""
    if mode == "offline" or (mode == "auto" and os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")):
        return ""
    address = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    host = address.hostname or "api.wandb.ai"
    if not has_key(host):
        return f"as there is no API key for {host} (wandb login)"
    # Through a proxy the host's own address may well be out of reach.
    if any(os.environ.get(n) for n in PROXIES):
        return None  # the proxy knows
    try:
        # W&B itself would try for its init_timeout before it says so.
        socket.create_connection((host, address.port or 443), timeout=REACH_SECONDS).close()
    except OSError as e:
        return f"as {host} can't be reached ({e.strerror or e})"
    return None


def has_key(host: str) -> bool:
    """In the environment, or where `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    for file in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            # _netrc: its name on Windows, which W&B looks for too.
            if file and netrc.netrc(expanded(file)).authenticators(host):
                return True
    return False
