"""A filter of personal data that has a form: addresses and numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from llmlab.registry import register

# The parts are bounded as RFC 5321 has them, so that a long word without an @ is no slow search.
EMAIL = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,8}[a-z]{2,63}(?![\w-])", re.I
)
IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?=[0-9a-f]*:[0-9a-f]*:)[0-9a-f:]{2,39}(?![\w:])", re.I)
# A country code, or groups as they are written: 555-123-4567, (020) 7946 0958. Dates and plain numbers have another form.
PHONE = re.compile(
    r"(?<![\w.+-])(?:"
    r"\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,4}\)?){2,5}"
    r"|\(\d{2,5}\) ?\d{3,4}(?:[ .-]?\d{3,4}){1,2}"
    r"|\d{3}([ .-])\d{3}\1\d{4}"
    r"|0\d{2,4}[ -]\d{3,4}(?:[ -]\d{3,4}){1,2}"
    r")(?![\w-]|\.\d)"
)
DIGITS = (8, 15)  # of a telephone number with its country code (ITU-T E.164: 15 at most)


@register("filter", "pii")
class PersonalData:
    """Drops documents that hold e-mail addresses, IP addresses or telephone numbers, by their form.

    FineWeb replaces e-mail and public IP addresses (Penedo et al. 2024, section 3.7, arXiv:2406.17557); a filter here drops
    the document. Addresses of private networks and those for examples are no one's and don't count, as there, and neither do
    the addresses of example.com and its kin (RFC 2606).

    emails: e-mail addresses count
    addresses: public addresses of IP, version 4 and 6, count
    phones: telephone numbers count: with a country code, or with groups of digits as such numbers are written
    most: a document with more of them, all kinds together, is dropped
    """

    telling = ({"most": 1}, {"most": 2})

    def __init__(self, *, emails: bool = True, addresses: bool = True, phones: bool = True, most: int = 0):
        if not (emails or addresses or phones):
            raise ValueError("emails, addresses and phones are all false: nothing would be dropped")
        if most < 0:
            raise ValueError(f"most must be at least 0, but is {most}")
        self.emails, self.addresses, self.phones, self.most = emails, addresses, phones, most

    def measure(self, texts: Sequence[str]) -> list[dict[str, int]]:
        """The number of each kind that occurs."""
        return [self._found(text) for text in texts]

    def reason(self, value: dict[str, int]) -> str | None:
        if sum(value.values()) <= self.most:
            return None
        more = f"more than {self.most:,} of: " if self.most else "with "
        return more + ", ".join(value)

    def _found(self, text: str) -> dict[str, int]:
        counts = {
            "e-mail addresses": sum(1 for _ in _emails(text)) if self.emails and "@" in text else 0,
            "IP addresses": sum(1 for _ in _addresses(text)) if self.addresses else 0,
            "telephone numbers": sum(1 for _ in _phones(text)) if self.phones else 0,
        }
        return {kind: n for kind, n in counts.items() if n}


def _emails(text: str) -> Iterator[str]:
    for match in EMAIL.finditer(text):
        domain = match[0].rpartition("@")[2].lower()
        if not re.search(r"(?:^|\.)(?:example(?:\.(?:com|net|org))?|test|invalid|localhost)$", domain):
            yield match[0]


def _addresses(text: str) -> Iterator[str]:
    for pattern in (IPV4, IPV6):
        for match in pattern.finditer(text):
            try:
                address = ip_address(match[0])
            except ValueError:  # 999.1.1.1, or a time such as 10:20:30
                continue
            # C++'s a::b is an address too, but none that was ever given out: those begin with the bits 001 (RFC 4291).
            if address.is_global and (address.version == 4 or int(address) >> 125 == 1):
                yield match[0]


def _phones(text: str) -> Iterator[str]:
    for match in PHONE.finditer(text):
        if DIGITS[0] <= sum(map(str.isdigit, match[0])) <= DIGITS[1]:
            yield match[0]
