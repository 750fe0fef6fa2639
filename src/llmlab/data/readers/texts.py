"""Files that are one text each: plain ones, and HTML, of which the text is kept."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from llmlab.data.readers.item import DAMAGED, EXCERPT, LONGEST, NOT_UTF8, TOO_LONG, Input, Item, Unreadable, Wanted
from llmlab.errors import UserError

# Elements whose content a browser doesn't show as text.
UNSHOWN = frozenset(("script", "style", "template", "noscript", "head", "svg", "math", "iframe", "object", "textarea"))
# Elements that stand on lines of their own (the display of the HTML standard, section 15.3); others run on in a line.
BLOCKS = frozenset((
    "address", "article", "aside", "blockquote", "body", "center", "dd", "details", "dialog", "dir", "div", "dl",
    "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header",
    "hgroup", "hr", "html", "legend", "li", "listing", "main", "menu", "nav", "ol", "optgroup", "option", "p",
    "plaintext", "pre", "search", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul", "xmp",
    "caption",
))  # fmt: skip
PARAGRAPHS = frozenset((
    "p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "table", "ul", "ol", "dl", "article", "section",
    "figure",
))  # fmt: skip
CELLS = frozenset(("td", "th"))
CHARSET = re.compile(rb"<meta[^>]*charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)


def plain(file: Input, wanted: Wanted) -> Iterator[Item]:
    """All of a file as one text in UTF-8 without a byte order mark in front."""
    yield Item(decoded(_bytes(file)))


def html(file: Input, wanted: Wanted) -> Iterator[Item]:
    """The text of a page: all that a browser shows, menus and footers too, a block a line, without markup."""
    yield Item(html_text(_page(_bytes(file))))


def _bytes(file: Input) -> bytes:
    with file.binary() as f:
        data = f.read(LONGEST + 1 if file.path is None else -1)
    if file.path is None and len(data) > LONGEST:
        raise Unreadable(TOO_LONG, f"is a compressed text of more than {LONGEST:,} bytes")
    return data


def decoded(data: bytes) -> str:
    """Bytes as text. Raises Unreadable."""
    try:
        # Not "utf-8-sig": the positions of its errors count from behind the mark.
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        shown = data[:EXCERPT].decode("utf-8", "backslashreplace")
        how = f"convert it, for example: iconv -f {coding} -t utf-8"
        raise Unreadable(NOT_UTF8, f"is not UTF-8 (byte {e.start}); {how}", shown) from None


def _page(data: bytes) -> str:
    """A page's source. In UTF-8, or what the page says that it is in where it isn't UTF-8."""
    try:
        return decoded(data)
    except Unreadable:
        named = CHARSET.search(data[:1024])
        if named is None:
            raise
        try:
            # Pages that name latin1 are in Windows' code page (WHATWG Encoding, section 4.2).
            name = codecs.lookup(named[1].decode()).name
            return data.decode("cp1252" if name in ("iso8859-1", "ascii") else name)
        except (LookupError, UnicodeDecodeError, AttributeError):
            raise Unreadable(NOT_UTF8, f"is neither UTF-8 nor {named[1].decode()}, which it says") from None


def html_text(source: str) -> str:
    """The text of a page's source. White space runs together as in a browser, but for that in <pre>."""
    try:
        import lxml.etree
        import lxml.html
    except ImportError:
        raise UserError(
            "data.path: to read .html the package lxml is missing: pip install 'llmlab[html]', or leave such files out"
        ) from None
    if not source.strip():
        return ""
    # Of a str with an encoding in an XML declaration lxml raises; a NUL ends the text for libxml2.
    parser = lxml.html.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    try:
        root = lxml.html.document_fromstring(source.replace("\0", "\ufffd").encode("utf-8"), parser=parser)
    except (lxml.etree.ParserError, lxml.etree.XMLSyntaxError) as e:
        if "empty" in str(e).lower():
            return ""
        raise Unreadable(DAMAGED, f"is no HTML ({e})", source[:EXCERPT]) from None
    # libxml2 ends a page at some 2,000 levels without an exception: what is behind would be lost in silence.
    if any(e.type_name == "ERR_RESOURCE_LIMIT" for e in parser.error_log):
        raise Unreadable(DAMAGED, "is nested too deep", source[:EXCERPT])
    return _Lines().of(root, lxml.etree)


class _Lines:
    """The lines of a page as they are found."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.now: list[str] = []
        self.kept = 0  # levels of <pre>

    def of(self, root, etree) -> str:  # type: ignore[no-untyped-def]  # lxml has no types
        hidden = 0
        # Not by recursion: a page may be nested deeper than Python's frames.
        for event, node in etree.iterwalk(root, events=("start", "end")):
            tag, starts = node.tag, event == "start"
            if tag in UNSHOWN:
                hidden += 1 if starts else -1
            elif not hidden and tag in BLOCKS:
                self.end(tag in PARAGRAPHS)
            elif not hidden and tag == "br" and starts:
                self.now.append("\n")
            elif not hidden and tag in CELLS and starts and self.now:
                self.now.append("\t")
            if tag == "pre" and not hidden and starts:
                self.kept += 1
            if not hidden and starts and node.text and tag not in UNSHOWN:
                self.add(node.text)
            if tag == "pre" and not hidden and not starts:
                self.kept -= 1
            if not starts and not hidden and node.tail and node is not root:
                self.add(node.tail)
        self.end(False)
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self.done)).strip("\n")

    def add(self, text: str) -> None:
        # A browser runs together the white space of ASCII alone: U+00A0 stays.
        self.now.append(text if self.kept else re.sub(r"[ \t\n\r\f]+", " ", text))

    def end(self, paragraph: bool) -> None:
        """The end of a line, with an empty one behind it where a paragraph ends."""
        text = "".join(self.now)
        self.now = []
        if not self.kept:
            text = re.sub(r" *([\n\t]) *", r"\1", re.sub(r" {2,}", " ", text)).strip(" \t\n")
        if text.strip():
            self.done.append(text.strip("\n"))
        if paragraph and self.done and self.done[-1]:
            self.done.append("")
