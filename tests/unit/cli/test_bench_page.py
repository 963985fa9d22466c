"""The page of `leveret bench` is well-formed, complete and self-contained, whatever a broker or a file says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.bench import MACHINE, NAMES, SETTINGS, curve, figures, report, row, series

from leveret.cli.bench import charts
from leveret.cli.bench.comparison import Comparison
from leveret.cli.bench.markup import tag
from leveret.cli.bench.page import page
from leveret.cli.stage import Broker

if TYPE_CHECKING:
    from leveret.cli.bench.results import Report, Row

HOSTILE = "</title><script src=//evil.example>alert(1)</script>\x1b[2J\u202e\x00'\"&amp;"


def parsed(text: str) -> ET.Element:
    assert text.startswith("<!DOCTYPE html>\n")
    return ET.fromstring(text.partition("\n")[2])


def texts(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    """The tags as a browser's parser reads them."""
    found: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, dict(attrs)))

    Reader().feed(text)
    return found


def test_page_has_each_benchmark_its_rows_and_its_charts() -> None:
    root = parsed(page(report()))
    sections = {heading.text: section for section in root.iter("section") for heading in section.findall("h3")}
    assert set(NAMES) <= sections.keys()
    for section in root.iter("section"):
        if section.get("class") == "card benchmark":
            captions = [caption.text or "" for caption in section.iter("figcaption")]
            assert len(captions) == 6
            for words in ("Rate", "Publish to confirm", "Network", "CPU of the client", "CPU of the broker", "Memory"):
                assert sum(words in caption for caption in captions) == 1
            assert all(len(list(figure.iter("path"))) == 2 for figure in section.iter("figure"))
    table = next(root.iter("table"))
    assert len(table.findall("tbody/tr")) == 12
    assert [texts(cell) for cell in table.findall("tbody/tr/th") if texts(cell)] == list(NAMES)


def test_page_names_both_machines_and_the_guide_s_rates() -> None:
    text = texts(parsed(page(report())))
    said = (
        *("Some Processor, 2 CPUs, 8.0 GiB RAM", "CPython 3.11.7", "RabbitMQ 4.0.5"),
        *("Standard development machine (8 cores, 16GB RAM)", "RabbitMQ 3.12.x running in Docker", "1KB JSON payload"),
        *("50,000", "180,000", "45,000", "120,000", "says little about Leveret"),
    )
    assert [words for words in said if words not in text] == []


def test_page_says_when_bodies_differ_from_the_guide_s() -> None:
    small = msgspec.structs.replace(SETTINGS, smallest_body_bytes=147, largest_body_bytes=154)
    assert "--size 1024" in texts(parsed(page(report(settings=small))))
    assert "--size 1024" not in texts(parsed(page(report())))


def test_page_loads_nothing_and_runs_nothing() -> None:
    text = page(report(), Comparison(report(), report()))
    assert re.findall(r"https?:|//\w|url\(|@import|<script|javascript:", text) == []
    loading = {"src", "href", "srcset", "data", "action", "background", "poster"}
    assert [name for name, attributes in tags(text) if loading & attributes.keys()] == []
    policies = [
        attributes["content"]
        for name, attributes in tags(text)
        if name == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_page_can_be_read_without_seeing_the_charts() -> None:
    root = parsed(page(report()))
    assert root.get("lang") == "en"
    assert root.findtext("head/title") == "Leveret benchmarks, 2026-11-30 12:30 UTC"
    pictures = [picture for picture in root.iter("svg") if picture.get("aria-hidden") != "true"]
    assert len(pictures) == 6 * 6
    for picture in pictures:
        label = picture.get("aria-label") or ""
        assert picture.get("role") == "img"
        assert picture.findtext("title") == label
        assert re.search(r"(default|json): [\d.,]+ to [\d.,]+; (tuned|msgpack): ", label), label
    headings = [element.tag for element in root.iter() if re.fullmatch("h[1-6]", element.tag)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    scrolling = [element for element in root.iter("div") if "scroll" in (element.get("class") or "")]
    assert all(element.get("tabindex") == "0" and element.get("aria-label") for element in scrolling)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_and_lines_stand_out_in_light_and_dark() -> None:
    """At least 4.5 to 1 for text and 3 to 1 for lines, as WCAG 2 (AA) has it."""
    styles = re.findall(r":root \{(.*?)\}", page(report()), re.DOTALL)
    assert len(styles) == 2
    for style in styles:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", style))
        for ground in ("page", "card", "warn"):
            for name, least in (("text", 4.5), ("faint", 4.5), ("first", 3.0), ("second", 3.0)):
                light, dark = sorted((luminance(colours[ground]), luminance(colours[name])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= least, (ground, name)


def hostile() -> Report:
    return report(
        [row(variant="tuned", how=HOSTILE, series=series(), latency=curve()), row(skipped=HOSTILE, runs=[figures()])],
        machine=msgspec.structs.replace(MACHINE, cpu=HOSTILE, python=HOSTILE, leveret=HOSTILE, system=HOSTILE),
        broker=Broker(product=HOSTILE, version=HOSTILE, embedded=False),
        settings=msgspec.structs.replace(SETTINGS, queue_type=HOSTILE),
    )


def test_names_from_brokers_and_files_are_no_markup() -> None:
    text = page(hostile(), Comparison(report(), hostile()))
    assert "alert(1)" in texts(parsed(text)), "it is shown"
    assert not any(character in text for character in "\x1b\u202e\x00")
    known = {name for name, _ in tags(page(report()))}
    assert {name for name, _ in tags(text)} <= known
    assert "script" not in known


@given(st.text(), st.text())
def test_any_text_is_escaped(content: str, attribute: str) -> None:
    element = ET.fromstring(tag("p", content, title=attribute))
    assert len(element) == 0
    if content.isprintable() and attribute.isprintable():
        assert (element.text or "", element.get("title")) == (content, attribute)


def test_comparison_shows_the_earlier_rates_changes_and_lines() -> None:
    earlier = report(
        [row("basic-publish", runs=[figures(500_000, client_cpu_us_per_msg=5.0)], series=series(), latency=curve())],
        settings=msgspec.structs.replace(SETTINGS, repeat=7),
        machine=msgspec.structs.replace(MACHINE, cpu="Other Processor"),
    )
    made = report()
    root = parsed(page(made, Comparison(made, earlier)))
    text = texts(root)
    assert all(words in text for words in ("500,000", "+100 %", "-50 %", "Earlier run, 2026-11-30", "Other Processor"))
    assert "repeat: 1, earlier 7" in text
    lines = [
        len(list(section.iter("path"))) - len(section.findall("ul/li/svg/path"))
        for section in root.iter("section")
        if section.get("class") == "card benchmark"
    ]
    assert lines == [6 * 3, 6 * 2, 6 * 2, 6 * 2, 6 * 2, 6 * 2], "the earlier run has one row"


def test_rows_without_samples_have_no_charts() -> None:
    made = report(
        [row(series=series(1), latency=None), row("serialization", "msgpack", median={}, runs=[], skipped="no")]
    )
    root = parsed(page(made))
    assert [texts(caption) for caption in root.iter("figcaption")] == []
    assert "not measured: no" in texts(root)


VALUES = st.floats(0, 1e15)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Rows with any figures that a file may have."""
    count = draw(st.integers(0, 6))

    def values() -> list[float]:
        return draw(st.lists(VALUES, min_size=count, max_size=count))

    samples = (
        series(0)
        if not count
        else msgspec.structs.replace(series(), **{name: values() for name in series().__struct_fields__})
    )
    points = draw(st.lists(st.tuples(st.floats(0, 100), VALUES), max_size=5))
    distribution = msgspec.structs.replace(
        curve(draw(st.integers(1, 10**12))),
        percent=[percent for percent, _ in points],
        ms=[ms for _, ms in points],
    )
    known: dict[str, Any] = {name: draw(st.none() | VALUES) for name in draw(st.sets(st.sampled_from(list(figures()))))}
    return row(runs=[known], series=samples, latency=distribution, baseline=draw(st.none() | VALUES))


@given(st.lists(rows(), max_size=3), st.lists(rows(), max_size=3))
def test_any_figures_can_be_drawn(some: list[Row], others: list[Row]) -> None:
    made, earlier = report(some), report(others)
    text = page(made, Comparison(made, earlier))
    for element in parsed(text).iter("path"):
        numbers = [float(word) for word in re.findall(r"[-\d.]+", element.get("d") or "")]
        assert all(-1 <= number <= 301 for number in numbers)


@pytest.mark.parametrize(
    ("highest", "labels"),
    [
        (0, ["0", "0.25", "0.5", "0.75", "1"]),
        (100, ["0", "25", "50", "75", "100"]),
        (0.3, ["0", "0.1", "0.2", "0.3"]),
        (180_123, ["0", "50k", "100k", "150k", "200k"]),
        (1.1e6, ["0", "500k", "1M", "1.5M"]),
    ],
)
def test_linear_axis_has_round_labels_from_0_to_above_the_highest(highest: float, labels: list[str]) -> None:
    axis = charts.linear(highest)
    assert [label for _, label in axis.ticks] == labels
    assert 0 <= axis.place(highest) <= 1.0000001
    assert axis.place(axis.ticks[-1][0]) == pytest.approx(1)


def test_logarithmic_axis_has_powers_of_ten() -> None:
    axis = charts.logarithmic(0.02, 70)
    assert [label for _, label in axis.ticks] == ["0.01", "0.1", "1", "10", "100"]
    assert [axis.place(value) for value in (0.01, 1, 100)] == pytest.approx([0, 0.5, 1])
    assert axis.place(0) == 0


@pytest.mark.parametrize(
    ("samples", "labels"),
    [
        (1, ["0", "90"]),
        (1000, ["0", "90", "99", "99.9"]),
        (100_000, ["0", "90", "99", "99.9", "99.99"]),
        (1_000_000, ["0", "90", "99", "99.9", "99.99", "99.999"]),
    ],
)
def test_percentile_axis_ends_at_the_share_of_one_sample(samples: int, labels: list[str]) -> None:
    axis = charts.percentiles(samples)
    assert [label for _, label in axis.ticks] == labels
    assert axis.place(100) == 1
    assert axis.place(0) == 0
