"""The filter of languages against py3langid itself, and its mistakes."""

import sys

import pytest
from parts import part

TEXTS = {
    "en": "The ship left the harbour in the morning, and nobody saw it again for many years.",
    "de": "Das Schiff verlie\u00df am Morgen den Hafen, und viele Jahre lang sah es niemand wieder.",
    "fr": "Le navire quitta le port au matin, et personne ne le revit pendant de longues ann\u00e9es.",
    "ru": "Корабль ушёл утром, и никто его больше не видел.",
    "zh": "船在早晨离开了港口，多年以来没有人再见过它。",
    "none": "",
}


def reasons(**options):
    made = part("filter", "language", **options)()
    return dict(zip(TEXTS, map(made.reason, made.measure(list(TEXTS.values()))), strict=True))


@pytest.mark.slow  # its model takes most of a second to load
def test_documents_in_other_languages_are_dropped():
    pytest.importorskip("py3langid")
    found = reasons(least=0.5)
    assert {k: why for k, why in found.items() if k != "none"} == {
        "en": None,
        **{k: f"in another language ({k})" for k in ("de", "fr", "ru", "zh")},
    }
    assert found["none"] is not None
    assert [k for k, why in reasons(keep=("de", "zh"), least=0.5).items() if why is None] == ["de", "zh"]
    assert reasons(least=1.0)["en"] == "in no language for certain, with a score below 1"
    with pytest.raises(ValueError, match="keep=german is no language that py3langid knows"):
        reasons(keep=("german",))


def test_refused(monkeypatch):
    for options, said in (({"keep": ()}, "keep names no language"), ({"least": 1.1}, "between 0 and 1, but is 1.1")):
        with pytest.raises(ValueError, match=said):
            part("filter", "language", **options)()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(ValueError, match=r"it needs py3langid: pip install 'llmlab\[language\]'"):
        reasons()
