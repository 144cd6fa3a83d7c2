"""Check the page: self-contained, escaped, made from the JSON alone, readable by everybody."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from report_runs import write_run

from fedopt import report_page
from fedopt.report import build_report, read_run, to_json
from fedopt.report_charts_run import audit_bound, binomial_between, bins, metric_by_round
from fedopt.report_figure import draw, label
from fedopt.report_page import generator, html_page
from fedopt.report_tables import tables

HOSTILE = "<script>alert(1)</script>\" onload='x' $\\frac{ & {{ 7*7 }} \x00 ]]> --> 汉"
VOID = {"meta", "link", "br", "path", "use", "rect"}


class Reader(HTMLParser):
    """Collect elements, and check that they are nested."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    """Read a page and check that every element is closed."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def report_of(folder: Path) -> dict[str, Any]:
    """Build the report of a run as it is read back from JSON."""
    report: dict[str, Any] = json.loads(to_json(build_report(read_run(folder))))
    return report


def page_of(report: dict[str, Any]) -> str:
    """Render the page, which needs the report extra."""
    page = html_page(report)
    assert page is not None
    return page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report_of(write_run(tmp_path_factory.mktemp("runs") / "plain"))


@pytest.fixture(scope="module")
def page(report: dict[str, Any]) -> str:
    return page_of(report)


def test_the_page_reaches_for_nothing_outside_itself(page: str) -> None:
    assert "http" not in page.lower()
    for tag, values in read(page).elements:
        assert tag not in {"script", "iframe", "img", "object", "embed", "form"}
        assert not any(name.startswith("on") for name in values)
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert values.get(name) is None or re.match(r"#|data:,$", values[name] or "")
    assert not re.search(r"@import|url\((?!#)", page)


def test_the_statement_and_the_trust_stand_before_everything_else(
    page: str, report: dict[str, Any]
) -> None:
    text = " ".join("".join(read(page).text).split())
    order = [
        report["statement"],
        report["as_run_statement"],
        "Not enforced by the code:",
        report["trust"][0],
        "Claimed and as run",
        "Epsilon by round",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_every_chart_of_the_issue_is_there(page: str) -> None:
    titles = re.findall(r'<h3 id="([\w-]+)-title">', page)
    assert titles == [
        "epsilon-by-round",
        "privacy-profile",
        "trade-off",
        "epsilon-by-population",
        "metric-by-round",
        "cohort-sizes",
        "layers",
    ]


def test_charts_are_described_for_those_who_do_not_see_them(page: str) -> None:
    elements = read(page).elements
    pictures = [values for _, values in elements if values.get("role") == "img"]
    drawn = [values for tag, values in elements if tag == "svg"]
    assert len(pictures) == len(drawn) == 7
    assert all(len(values["aria-label"] or "") > 40 for values in pictures)
    assert all(values["aria-hidden"] == "true" for values in drawn)


def test_headings_descend_and_the_language_is_named(page: str) -> None:
    elements = read(page).elements
    levels = [int(tag[1]) for tag, _ in elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    assert ("html", {"lang": "en"}) in elements


def test_what_scrolls_can_be_reached_by_keyboard(page: str) -> None:
    for _, values in read(page).elements:
        if values.get("class") == "scroll":
            assert values["tabindex"] == "0"
            assert values["role"] == "region"
            assert values["aria-label"]


def test_identifiers_are_unique_and_references_lead_somewhere(page: str) -> None:
    names = re.findall(r'\sid="([^"]+)"', page)
    assert len(names) == len(set(names))
    wanted = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    wanted += re.findall(r'aria-labelledby="([^"]+)"', page)
    assert set(wanted) <= set(names)


def test_what_comes_from_peoples_data_is_marked(page: str) -> None:
    for key in ("metric-by-round", "layers"):
        assert re.search(rf'id="{key}-title">[^<]*<span class="tag">not private</span>', page)
    assert not re.search(r'id="epsilon-by-round-title">[^<]*<span', page)


def luminance(colour: str) -> float:
    """Give the relative luminance of WCAG 2.2 of a colour like #1b1b1b or #fff."""
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_colour_of_text_stands_out_from_every_ground(page: str) -> None:
    style = page[page.index("<style>") : page.index("</style>")]
    inks = set(re.findall(r"[ {;]color: (#\w+)", style))
    grounds = set(re.findall(r"background: (#\w+)", style))
    assert len(inks) >= 4
    assert len(grounds) >= 3
    for ink in inks:
        for ground in grounds:
            light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_same_json_gives_the_same_bytes(report: dict[str, Any], page: str) -> None:
    assert page_of(copy.deepcopy(report)) == page


def test_the_page_is_made_from_the_json_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=2)
    built = build_report(read_run(folder))
    text = to_json(built)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink()
    assert page_of(json.loads(text)) == html_page(built)


def hostile(value: Any) -> Any:
    """Put hostile text in the place of every free text of a report."""
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    words = {"inf", "not enforced", "enforced", "trusted", "rdp", "pld", "poisson"}
    return HOSTILE if isinstance(value, str) and value not in words else value


def test_hostile_strings_stay_text(report: dict[str, Any]) -> None:
    attacked = hostile(report)
    attacked["utility"]["data"] = {HOSTILE: HOSTILE}
    page = page_of(attacked)
    reader, honest = read(page), read(page_of(report))
    assert {tag for tag, _ in reader.elements} <= {tag for tag, _ in honest.elements}
    assert {name for _, values in reader.elements for name in values} <= {
        name for _, values in honest.elements for name in values
    }
    assert "{{ 7*7 }}" in page  # shown, not computed
    assert page.count("&lt;script&gt;") > 20
    assert "<script>alert(1)</script>" in "".join(reader.text)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.text(max_size=60))
def test_any_text_can_be_a_label(text: str) -> None:
    def plot(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], label=label(text))
        axes.set_xlabel(label(text))

    element = draw("any", plot)
    assert element.startswith("<svg ")
    assert element.endswith("</svg>")
    assert "<script" not in element.lower()


ODD: dict[str, dict[str, Any]] = {
    "no noise": {"noise_multiplier": 0.0, "epsilon": None},
    "no rounds": {"finished": 0, "model": False},
    "virtual users": {"virtual_users": True},
    "fixed": {"sampling": "fixed", "noise_multiplier": 2.0},
    "everyone": {
        "population": 100,
        "cohort": 100,
        "simulated_cohort": 100,
        "sampling": "everyone",
        "noise_multiplier": 4.0,
    },
    "no layers": {"layers": []},
    "one round": {"rounds": 1},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_runs_have_a_page(tmp_path: Path, name: str) -> None:
    page = page_of(report_of(write_run(tmp_path / "run", **ODD[name])))
    read(page)
    assert ("<blockquote class=" in page) == (name == "no noise")


def test_a_run_without_metric_has_no_chart_of_it(report: dict[str, Any]) -> None:
    empty = copy.deepcopy(report)
    empty["utility"]["history"] = []
    empty["utility"]["final"] = None
    assert metric_by_round(empty) is None
    assert any(value == "none" for _, value in tables(empty)[4].rows)


def test_a_metric_that_is_no_number_is_left_out_of_the_chart(report: dict[str, Any]) -> None:
    broken = copy.deepcopy(report)
    broken["utility"]["history"][0]["value"] = "nan"
    broken["utility"]["history"][1]["value"] = "inf"
    chart = metric_by_round(broken)
    assert chart is not None
    assert "goes from 0.2 at round 2 to 0.5 at round 5" in chart.alt


def test_three_hundred_layers_are_drawn(tmp_path: Path) -> None:
    layers = [[f"layer.{number}", 10 + number % 7] for number in range(296)]
    folder = write_run(tmp_path / "run", layers=layers)
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for row in rows:
        row["layer_clipped"] = [0.5] * 296
    (folder / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(report_of(folder))
    assert "Table of 296 layers" in page
    assert "layer.295" in page


AUDIT: dict[str, Any] = {
    "method": "canary users",
    "canaries": 100,
    "confidence": 0.95,
    "bounds": [{"name": "all rounds", "epsilon": 1.5}, {"name": "final", "epsilon": 0.1}],
    "exceeded": [],
}


@pytest.mark.parametrize("exceeded", [[], ["all rounds"]])
def test_an_audit_is_drawn_and_a_fault_stands_on_top(
    report: dict[str, Any], exceeded: list[str]
) -> None:
    page = page_of(report | {"audit": AUDIT | {"exceeded": exceeded}})
    assert 'id="audit-title"' in page
    assert "100 canary users" in page
    assert "not made" not in page
    top = page[: page.index('id="trust"')]
    assert ("The audit found a fault:" in top) == bool(exceeded)


def test_an_accountants_bound_far_off_does_not_hide_the_audits(report: dict[str, Any]) -> None:
    far, near = copy.deepcopy(report), copy.deepcopy(report)
    near["as_run"]["epsilon"]["value"] = 3.0
    for one, drawn in ((far, False), (near, True)):
        chart = audit_bound(one | {"audit": AUDIT})
        assert chart is not None
        assert ("as run, by the accountant" in chart.svg) == drawn


def test_without_the_extra_there_is_no_page(
    report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        report_page.importlib.util,
        "find_spec",
        lambda name: None if name == "matplotlib" else found(name),
    )
    assert html_page(report) is None
    assert report_page.missing_packages() == ["matplotlib"]


def test_the_page_names_what_drew_it(page: str) -> None:
    assert f'<meta name="generator" content="{generator()}">' in page
    assert "matplotlib" in generator()


@given(
    some.lists(some.integers(0, 10**6), min_size=1, max_size=50),
    some.one_of(some.none(), some.floats(0.001, 0.999)),
)
def test_bins_hold_every_cohort_once(sizes: list[int], rate: float | None) -> None:
    edges = bins(sizes, 10**6, rate)
    assert len(edges) <= 30
    for size in sizes:
        assert sum(low <= size < high for low, high in edges) == 1


def test_the_binomial_of_the_chart_is_the_binomial() -> None:
    # Binomial(4, 0.5): 1, 4, 6, 4, 1 sixteenths.
    assert binomial_between(4, 0.5, 0, 1) == pytest.approx(1 / 16)
    assert binomial_between(4, 0.5, 1, 3) == pytest.approx(10 / 16)
    assert binomial_between(4, 0.5, 4, 9) == pytest.approx(1 / 16)
