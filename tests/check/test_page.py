"""What `llmlab check` writes, and that the pages in docs/ are of what there is today."""

import re
from pathlib import Path

from told import results

from llmlab import registry
from llmlab.check import case_checks, cases, page, report, request, swap_page, terminal
from llmlab.check.subject import Case, Subject
from llmlab.check.twins import NO_TWIN
from llmlab.commands.check import BACKENDS
from llmlab.config.model_files import families


def test_the_page_keeps_what_others_wrote_and_names_what_failed(tmp_path):
    made = report.Report({"built": "It is built.", "causality": "Nothing is seen."}, seconds=1.0)
    case = Case("pair 1", (), parts=(("norm", "rmsnorm"), ("ffn", "glu")))
    made.add(case, results(case, built=("passed",), causality=("failed", "it sees", "llmlab check ffn=glu")))
    made.refused = {(("kernel", "sdpa"), ("position", "dual_chunk")): "choose another | or not"}
    (tmp_path / "conformance.md").write_text(f"# Old\n\nold\n\n{page.PRESERVED}\n\n| bug | caught by |\n")
    with page.report_writer(tmp_path, page.MATRIX) as write:
        write(made)
    text = (tmp_path / "conformance.md").read_text()
    assert "\nold\n" not in text and text.count(page.PRESERVED) == 1 and text.rstrip().endswith("| bug | caught by |")
    assert "| pair 1 | causality | it sees | llmlab check ffn=glu |" in text
    assert "| norm=rmsnorm | 1 | ✓ | ✗ |" in text
    assert "| kernel=sdpa position=dual\\_chunk | choose another \\| or not |" in text


def test_parts_that_were_compared_with_nothing_are_named(capsys):
    made = report.Report({"definition": "It is what its paper says."}, checked_part=("norm", "rmsnorm"))
    case = Case("norm=rmsnorm", (), "part", parts=(("norm", "rmsnorm"),))
    made.add(case, results(case, definition=("skipped", NO_TWIN)))
    terminal.show(made)
    line = "norm=rmsnorm has no twin: its numbers are compared with nothing; docs/your_part.md shows how to write one"
    assert capsys.readouterr().out.count(line) == 1
    assert "compared with nothing (docs/your_part.md): `norm=rmsnorm`\n" in page.page_text(made)
    assert page.to_json(made)["without_twin"] == ["norm=rmsnorm"]
    held = report.Report(made.checks)
    held.add(case, results(case, definition=("passed",)))
    assert "were compared with nothing" not in page.page_text(held) and page.to_json(held)["without_twin"] == []


def test_no_family_refuses_a_part_for_its_tiny_size():
    for name in ("gpt_neox", "stablelm"):  # of whose heads a quarter is rotated, and MLA rotates half of a head
        assert (
            Subject(cases.family_case(name, ["attention=mla"])).spec.stacks[-1].layers[0].parts["attention"].name
            == "mla"
        )


def test_no_refusal_in_the_docs_quotes_a_tiny_size():
    text = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    told = [line.split(" | ")[-1] for line in text.partition("## Refused")[2].splitlines() if line.startswith("| ")]
    sizes = [why for why in told if re.search(r"(?<![\w.])\d", why)]
    assert told and not sizes, "llmlab check --families to=docs"


def test_the_page_of_families_says_that_they_train_only_where_that_was_asked():
    said = [
        swap_page.page_text(report.Report(dict.fromkeys(names, "")))
        for names in (["causality"], ["trains", "causality"])
    ]
    assert ["train for two steps" in text for text in said] == [False, True]
    assert all("keep the promises that are asked of them (causality)" in text for text in said)


def test_the_page_and_its_data_name_what_compiles(monkeypatch):
    made = report.Report({"compiled": "It compiles."})
    for name in BACKENDS:
        monkeypatch.setenv("LLMLAB_CHECK_COMPILE", name)
        assert f"compiled by `{name}`" in page.page_text(made) and page.to_json(made)["compile"] == name
    assert "compiled" not in page.page_text(report.Report({"causality": "Nothing is seen."}))


def test_the_page_in_the_docs_is_of_what_there_is_today():
    """And says that all of it holds."""
    text = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8").replace("\\_", "_")
    said = {}
    for section in text.split("\n## "):
        rows = [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines() if line.startswith("| ")]
        said[section.partition("\n")[0].strip()] = set(rows[2:])  # below the head
    assert said["Promises"] == set(case_checks.checks_of("part")) | set(case_checks.checks_of("family")), (
        "make conformance"
    )
    assert said["Parts"] == {f"{s}={name}" for s in request.SLOTS for name in registry.names(s)}, "make conformance"
    assert said["Families"] == set(families()), "make conformance"
    assert not [line for line in text.splitlines() if line.startswith("| ") and "✗" in line]
    assert text.count("✗") == 1 and "## Failures" not in text  # in the legend
