"""The report as files: what is in it, what others read of it, and that hostile text stays text."""

import csv
import io
import re
from html.parser import HTMLParser

import pytest

from metagen_ray.analysis.tables import CellRow
from metagen_ray.view.files import CELL_COLUMNS, QUADRANT_COLUMNS, to_csv
from metagen_ray.view.report import write_report
from tests.view.study import HOSTILE, report_tables

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def written() -> dict[str, bytes]:
    return write_report(report_tables())


class Page(HTMLParser):
    """Collects tags with their attributes, and the text outside the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.reverse()
        if tag in self._open:
            self._open.remove(tag)
        self._open.reverse()

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data


def read(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def number(text: str) -> float | None:
    return None if text == "" else float(text)


def test_quadrants_csv_has_the_stable_columns_and_every_digit(written: dict[str, bytes]) -> None:
    rows = report_tables().analysis.quadrants
    found = read(written["quadrants.csv"])
    assert tuple(found[0]) == QUADRANT_COLUMNS
    assert QUADRANT_COLUMNS == ("predictor", "quadrant", "metric", "value", "low", "high", "cells")
    assert [
        (
            f["predictor"],
            f["quadrant"],
            f["metric"],
            *(number(f[c]) for c in ("value", "low", "high")),
            int(f["cells"]),
        )
        for f in found
    ] == [(r.predictor, r.quadrant, r.metric, r.value, r.low, r.high, r.cells) for r in rows]


def test_cells_csv_round_trips_and_leaves_missing_propensities_empty(written: dict[str, bytes]) -> None:
    rows = report_tables().analysis.cells
    found = read(written["cells.csv"])
    assert tuple(found[0]) == CELL_COLUMNS
    back = [
        (
            *(f[c] for c in CELL_COLUMNS[:5]),
            int(f["coordinate"]),
            number(f["propensity"]),
            int(f["answers"]),
            int(f["unscored"]),
        )
        for f in found
    ]
    assert back == [tuple(getattr(r, c) for c in CELL_COLUMNS) for r in rows]
    assert any(r.propensity is None for r in rows)


def test_csv_with_separators_quotes_and_line_ends_reads_back() -> None:
    hostile = [('a,b"c', "two\nlines", "=1+1", "ünicode")]
    row = next(csv.reader(io.StringIO(to_csv(("a", "b", "c", "d"), hostile).decode().split("\n", 1)[1], newline="")))
    assert tuple(row) == hostile[0]


def test_every_picture_has_its_numbers_beside_it_and_in_the_page(written: dict[str, bytes]) -> None:
    pictures = {name.removesuffix(".png") for name in written if name.endswith(".png")}
    assert len(pictures) == 6
    page = Page(written["index.html"].decode())
    downloads = {a.get("download") for t, a in page.tags if t == "a"}
    for name in pictures:
        assert written[f"{name}.png"].startswith(PNG)
        assert len(read(written[f"{name}.csv"])) > 3
        stem = name.removeprefix("figures/")
        assert {f"{stem}.csv", f"{stem}.png"} <= downloads


def test_page_refers_to_nothing_outside_itself(written: dict[str, bytes]) -> None:
    html = written["index.html"].decode()
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "srcset", "action", "poster", "data"}:
                assert value is not None and value.startswith(("data:", "#")), (tag, name, value)
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    policy = [a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and "default-src 'none'" in (policy[0] or "")


def test_hostile_answers_are_shown_as_text(written: dict[str, bytes]) -> None:
    page = Page(written["index.html"].decode())
    for text in HOSTILE:
        assert text.replace("\x00", "\ufffd") in page.text.replace("\x00", "\ufffd")
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    assert all(tag != "script" for tag, _ in page.tags)


def test_page_names_what_the_study_was(written: dict[str, bytes]) -> None:
    text = Page(written["index.html"].decode()).text
    for expected in (
        "0123456789ab",
        "lab:informative",
        "12 meta-train",
        "2.13.0+cpu",
        "a note of the stage",
        "0.981",
    ):
        assert expected in text


def test_report_of_an_option_suite_with_few_domains_is_complete() -> None:
    tables = report_tables(8, coordinates=3)
    written = write_report(tables)
    assert {c.coordinate for c in tables.analysis.cells} == {0, 1, 2}
    assert "interval n/a" in Page(written["index.html"].decode()).text
    assert "figures/rmse.png" in written


def test_report_twice_gives_the_same_bytes(written: dict[str, bytes]) -> None:
    again = write_report(report_tables())
    assert {name for name in written if written[name] != again[name]} == set()


def test_cell_rows_keep_the_columns_that_others_read() -> None:
    assert set(CELL_COLUMNS) <= set(CellRow.__dataclass_fields__)
