"""The page of `castor data stats`: self-contained, complete, and safe for whatever a data set holds."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from castor.cli.main import app
from castor.config.data import DataSource
from castor.data.inspect.statistics import DataStatistics, measure
from castor.io.files import write_jsonl
from castor.reports.data_page import headline, warnings, write_data_page
from castor.reports.page import breakable

VOID = {"meta", "path", "use", "rect", "br", "link", "img"}


class Page(HTMLParser):
    """Collects titles and text, and checks that tags close and nothing is loaded from elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.figures = 0
        self.feed(html.replace("<wbr>", ""))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        assert all((value or "").startswith("#") for name, value in attrs if name in ("src", "href"))
        self.figures += tag == "figure"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(folder: Path, statistics: DataStatistics) -> tuple[Page, str]:
    write_data_page(folder / "page.html", statistics)
    html = (folder / "page.html").read_text(encoding="utf-8")
    assert "url(http" not in html
    assert "@import" not in html
    return Page(html), html


def rows_of(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> DataStatistics:
    write_jsonl(folder / name, rows)
    return measure(DataSource(source=str(folder / name)))


def test_a_set_of_pairs_fills_every_section(tmp_path: Path) -> None:
    statistics = measure(DataSource(limit=300))
    page, html = page_of(tmp_path, statistics)
    text = " ".join(page.text)
    assert page.figures == 6
    assert headline(statistics) in text
    for title in ("independent?", "Class balance", "Severity ladder", "Which categories", "How long", "Duplicates"):
        assert title in text
    for category in ("White-Collar Crime", "Human Trafficking"):
        assert category in text
    assert "No row has" not in text
    assert "No prompt has 3 compared responses" in text
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_ranks_within_prompts_get_their_columns(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p {n}", "response_0": a, "response_1": b, "better_response_id": n % 2, "safer_response_id": 0}
        for n in range(4)
        for a, b in (("one", "two words"), ("one", "three words here"))
    ]
    page, _ = page_of(tmp_path, rows_of(tmp_path, rows))
    assert "ranked prompts" in page.text


def test_sections_without_data_say_so(tmp_path: Path) -> None:
    answers = [{"prompt": f"p {n}", "response": "text", "is_safe": False} for n in range(3)]
    statistics = rows_of(tmp_path, answers)
    page, _ = page_of(tmp_path, statistics)
    text = " ".join(page.text)
    for sentence in (
        "No row has both preferences",
        "No row has a preference.",
        "No response is labelled with a harm category.",
        "No response has a severity level.",
    ):
        assert sentence in text
    assert warnings(statistics) == ["One class only: every labelled response is unsafe."]
    prompts = rows_of(tmp_path, [{"prompt": "How?", "category": "self_harm"}, {"prompt": "Why?"}])
    page, _ = page_of(tmp_path, prompts)
    text = " ".join(page.text)
    assert "There are no responses here." in text
    assert "self_harm" in text


def test_markup_in_the_name_of_a_source_is_text(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {n}", "response": "text"} for n in range(3)]
    _, html = page_of(tmp_path, rows_of(tmp_path, rows, "<script>alert(1)<[b].jsonl"))
    assert "<script" not in html


@pytest.mark.parametrize(
    ("agreeing", "words"),
    [(20, "go together"), (0, "pull apart"), (10, "not measurably related")],
)
def test_the_headline_follows_the_interval(tmp_path: Path, agreeing: int, words: str) -> None:
    rows = [
        {"prompt": f"p {n}", "response_0": "a b", "response_1": "c", "better_response_id": n % 2}
        | {"safer_response_id": n % 2 if n < agreeing else 1 - n % 2}
        for n in range(20)
    ]
    assert words in headline(rows_of(tmp_path, rows))


def test_a_preference_for_one_position_is_a_warning(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p {n}", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": n % 2}
        for n in range(20)
    ]
    (warning,) = warnings(rows_of(tmp_path, rows))
    assert "more helpful response comes first in 100" in warning


def test_the_command_writes_the_page_and_the_numbers(tmp_path: Path) -> None:
    page, numbers = tmp_path / "page.html", tmp_path / "stats.json"
    arguments = ["data", "stats", "synthetic", "--rows", "qa", "--limit", "30", "--out", str(page)]
    result = CliRunner().invoke(app, [*arguments, "--json", str(numbers)])
    assert result.exit_code == 0, result.output
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert DataStatistics.model_validate(json.loads(numbers.read_text())).kinds == {"qa": 30}


def test_long_names_break_where_a_reader_would() -> None:
    assert breakable("drug_abuse,<weapons>") == "drug_<wbr>abuse,&lt;weapons&gt;"
    assert breakable("a,b/c d_") == "a,<wbr>b/<wbr>c d_"
