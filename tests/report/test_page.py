"""The page in a real browser: it sorts, filters, executes no text and loads nothing."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from report.browser import browser, needs_chromium
from report.runs import record

from seqrun.report import write_report

HOSTILE = '<img src=x onerror="document.title=1">"\'&</script><script>document.title=2</script>'
EVENTS = ("Network.requestWillBeSent", "Log.entryAdded", "Runtime.exceptionThrown")
LOADING = ("src", "href", "srcset", "data", "action", "style", "background")
ROWS = "Array.from(document.querySelectorAll('#results tbody tr'))"


@pytest.fixture
def report(tmp_path):
    finals = {"er": 0.95, "ewc": 0.9, "naive": 0.55, "si": 0.105}
    for algo, final in finals.items():
        own = {"algo": {"memory_size": 9} if algo == "er" else {}}
        record(tmp_path / "runs" / algo, {0: final, 1: final + 0.02}, algo=algo, keys=own)
    record(tmp_path / "runs" / "er2", {0: 0.93}, algo="er", keys={"algo": {"memory_size": 10}})
    record(tmp_path / "runs" / "er3", {0: 0.925}, algo="er", keys={"algo": {"memory_size": 100}})
    return tmp_path


@pytest.mark.ci
@needs_chromium
def test_sorting_and_filtering(report):
    write_report([report / "runs"], report / "out")
    with browser(report / "profile") as page:
        page.open(report / "out" / "index.html")

        def shown(column=0):
            cells = f"{ROWS}.filter(r => !r.hidden).map(r => r.cells[{column}].textContent)"
            return page.evaluate(cells)

        def header(words):
            buttons = "Array.from(document.querySelectorAll('#results th button'))"
            return f"{buttons}.find(b => b.textContent === '{words}')"

        assert shown() == ["er", "er", "er", "ewc", "naive", "si"]
        page.click(header("average accuracy (%)"))
        assert shown() == ["si", "naive", "ewc", "er", "er", "er"]
        page.click(header("average accuracy (%)"))
        assert shown() == ["er", "er", "er", "ewc", "naive", "si"]
        page.click(header("memory_size"))
        assert shown(1) == ["9", "10", "100", "–", "–", "–"]
        page.click(header("memory_size"))
        assert shown(1) == ["100", "10", "9", "–", "–", "–"]  # empty cells are always last
        state = "document.querySelector('#results th[aria-sort]').getAttribute('aria-sort')"
        assert page.evaluate(state) == "descending"

        field = "document.querySelector('input[data-table=results]')"
        page.type(field, "ER 10")
        assert shown(1) == ["100", "10"]
        output = "document.querySelector('.filter output').textContent"
        assert page.evaluate(output) == "2 of 6 shown"
        page.type(field, "0")
        assert shown(1) == ["100"]

        images = "Array.from(document.images).map(i => i.naturalWidth)"
        widths = page.evaluate(images)
        assert len(widths) == 2 + 6 and min(widths) > 300
        happened = {name: [e for e in page.events if e["method"] == name] for name in EVENTS}
        asked = [e["params"]["request"]["url"] for e in happened["Network.requestWillBeSent"]]
        assert asked and not [url for url in asked if not url.startswith(("file:", "data:"))]
        assert not happened["Log.entryAdded"] and not happened["Runtime.exceptionThrown"]


@pytest.mark.ci
@needs_chromium
def test_text_of_a_run_is_not_run(tmp_path):
    record(tmp_path / "a", {0: 0.9, 1: 0.8}, algo=HOSTILE)
    record(tmp_path / "b", {0: 0.7, 1: 0.8}, keys={"optimizer": {HOSTILE: HOSTILE}})
    record(tmp_path / "c", {0: 0.7}, keys={"optimizer": {HOSTILE: "x"}})
    record(tmp_path / "d", {}, seeds=[3], status="failed", error=ValueError(HOSTILE))
    write_report([tmp_path], tmp_path / "out")
    with browser(tmp_path / "profile") as page:
        page.open(tmp_path / "out" / "index.html")
        assert page.evaluate("document.title") == "Continual learning runs"
        assert page.evaluate("document.scripts.length") == 1
        assert page.evaluate("document.querySelectorAll('[onerror]').length") == 0
        names = page.evaluate(f"{ROWS}.map(r => r.cells[0].textContent)")
        assert HOSTILE in names


@pytest.mark.ci
def test_text_is_escaped_without_a_browser_too(tmp_path):
    record(tmp_path / "a", {0: 0.9}, algo=HOSTILE, keys={"optimizer": {HOSTILE: HOSTILE}})
    record(tmp_path / "d", {}, seeds=[3], status="failed", error=ValueError(HOSTILE))
    write_report([tmp_path], tmp_path / "out")
    tags: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, given: tags.append((tag, dict(given)))  # type: ignore
    parser.feed((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in tags].count("script") == 1
    assert not [given for _, given in tags if any(name.startswith("on") for name in given)]
    loaded = [value for _, given in tags for name, value in given.items() if name in LOADING]
    assert loaded and all(value.startswith("data:image/png;base64,") for value in loaded)
