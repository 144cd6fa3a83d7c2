"""Open the page in a real browser: nothing is fetched, nothing complains, all is visible."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_run

from fedopt import run_directory
from fedopt.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
RUNS: dict[str, dict[str, Any]] = {
    "good": {
        "population": 100,
        "cohort": 8,
        "noise_multiplier": 1.0,
        "delta": 1e-4,
        "randomness": "secure",
    },
    "bad": {"noise_multiplier": 0.0, "epsilon": None},
    "simulated": {},
}
VISIBLE = """
<script>
const tall = [...document.querySelectorAll("svg")].map(one => one.getBoundingClientRect().height);
const said = document.querySelector("blockquote").getBoundingClientRect();
document.title = JSON.stringify({tall, said: said.height, width: document.body.scrollWidth,
  text: document.querySelectorAll("svg text").length});
</script>
"""


def browser() -> str:
    """Find a browser; skips the test where there is none."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium is installed")


def open_page(page: Path, folder: Path, *flags: str) -> tuple[str, str]:
    """Open a page in a new profile; returns what it wrote to stdout, and its log."""
    log = folder / "chrome.log"
    command = [browser(), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1200,900"]
    # "no resolver" turns every name into an error, so that a request anywhere fails and is logged.
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0"]
    done = subprocess.run(
        [*command, *flags, page.as_uri()], capture_output=True, text=True, timeout=180, check=True
    )
    log.write_text(done.stderr)
    return done.stdout, done.stderr


@pytest.fixture(scope="module", params=RUNS)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / request.param, **RUNS[request.param])
    write_report(folder)
    return folder / run_directory.REPORT_HTML


@pytest.mark.slow
def test_the_statement_and_the_charts_are_visible(page: Path, tmp_path: Path) -> None:
    watched = tmp_path / "watched.html"
    watched.write_text(page.read_text().replace("</body>", f"{VISIBLE}</body>"))
    shown, _ = open_page(watched, tmp_path, "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title is not None
    found = json.loads(html.unescape(title.group(1)))
    assert found["said"] > 20
    assert len(found["tall"]) == page.read_text().count("<svg ") >= 3
    assert min(found["tall"]) > 150
    assert found["text"] > 30
    assert found["width"] <= 1200


@pytest.mark.slow
def test_the_browser_has_nothing_to_complain_about(page: Path, tmp_path: Path) -> None:
    _, log = open_page(page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in log


@pytest.mark.slow
def test_a_complaint_of_the_page_would_be_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.html"
    wrong.write_text("<!DOCTYPE html><script>console.error('seen')</script>")
    _, log = open_page(wrong, tmp_path, "--dump-dom")
    assert "CONSOLE" in log
    assert "seen" in log


def requests(page: Path, folder: Path) -> list[str]:
    """List the addresses that the browser asked for, from its own network log."""
    record = folder / "net.json"
    flags = (f"--log-net-log={record}", "--net-log-capture-mode=Everything", "--dump-dom")
    open_page(page, folder, *flags)
    events = json.loads(record.read_text())["events"]
    urls = [str(event.get("params", {}).get("url", "")) for event in events]
    return [url for url in urls if re.match(r"(https?|wss?|ftp):", url)]


@pytest.mark.slow
def test_the_page_asks_nobody_for_anything(page: Path, tmp_path: Path) -> None:
    quiet = tmp_path / "quiet.html"
    quiet.write_text("<!DOCTYPE html><title>nothing</title>")
    of_browser = {url.split("?")[0] for url in requests(quiet, tmp_path)}
    second = tmp_path / "second"
    second.mkdir()
    of_page = {url.split("?")[0] for url in requests(page, second)}
    assert of_page <= of_browser


@pytest.mark.slow
def test_a_request_of_the_page_would_be_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.html"
    wrong.write_text('<!DOCTYPE html><img src="http://fedopt.invalid/picture.png">')
    assert any("fedopt.invalid" in url for url in requests(wrong, tmp_path))


@pytest.mark.slow
def test_the_page_prints_to_pdf(page: Path, tmp_path: Path) -> None:
    printed = tmp_path / "report.pdf"
    open_page(page, tmp_path, f"--print-to-pdf={printed}", "--no-pdf-header-footer")
    content = printed.read_bytes()
    assert content.startswith(b"%PDF-")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", content)) <= 12


@pytest.mark.slow
def test_a_screenshot_can_be_looked_at(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "report.png"
    open_page(page, tmp_path, f"--screenshot={picture}")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
