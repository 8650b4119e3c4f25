"""Text from data can't steer a terminal or make Markdown; figures have one form."""

import html
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rmtrain.reporting.text import (
    block,
    count,
    decimal,
    duration,
    interval,
    markdown,
    percent,
    plain,
    points,
    python_literal,
    scientific,
)

ANYTHING = st.text(st.characters(codec=None), max_size=60)
NASTY = st.text(st.sampled_from("\x1b[]31m\x07\r\n\t \\`*_{}()<>#|~!$&:@.-=ab"), max_size=40)


@pytest.mark.parametrize(("whole", "shown"), [(0.0375, "+3.8"), (-0.1125, "-11.2"), (0.0, "+0.0")])
def test_sums_in_another_order_are_printed_alike(whole: float, shown: str) -> None:
    for near in (whole - 1e-16, whole, whole + 1e-16):
        assert points(near, 1, "+") == shown
        assert percent(near) == f"{shown.removeprefix('+')} %"
        assert interval(near, near) == f"{shown.removeprefix('+')} to {shown.removeprefix('+')} %"


@given(ANYTHING | NASTY)
def test_plain_text_steers_nothing_and_can_be_written(text: str) -> None:
    shown = plain(text)
    shown.encode("utf-8")
    assert all(character.isprintable() or not character.isascii() for character in shown)
    assert not set(shown) & set("\x1b\x7f\x9b\u2028\u2029\u202e\u2066")
    assert plain(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x07link\x1b]8;;\x1b\\ it", "link it"),
        ("a\r\nb\tc", "a  b c"),
        ("back\x08space\x00", "backspace"),
        ("\u202edcba", "dcba"),
        ("half \ud83d", "half \ufffd"),
        ("naïve 東京 👩‍🔬", "naïve 東京 👩‍🔬"),
    ],
)
def test_plain_text_by_example(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_block_keeps_lines_and_indentation() -> None:
    assert block("a:\n  b: \x1b[1mc  \n\n") == "a:\n  b: c\n"


@given(ANYTHING | NASTY)
def test_markdown_shows_the_text_and_nothing_else(text: str) -> None:
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(f"x {markdown(text)} x")
    assert rendered == f"<p>{html.escape(f'x {plain(text)} x').replace('&#x27;', chr(39))}</p>\n"


@given(ANYTHING | NASTY)
def test_markdown_stays_in_its_cell(text: str) -> None:
    table = f"| a | b |\n| --- | --- |\n| {markdown(text)} | end |\n"
    rendered = MarkdownIt("commonmark").enable("table").render(table)
    assert rendered.count("<td>") == 2
    assert rendered.count("<tr>") == 2
    assert "<td>end</td>" in rendered


@pytest.mark.parametrize(
    "text", ["[x](javascript:alert(1))", "<javascript:alert(1)>", "www.evil.example", "http://evil"]
)
def test_markdown_makes_no_link(text: str) -> None:
    rendered = MarkdownIt("commonmark", {"linkify": False}).render(markdown(text))
    assert "<a" not in rendered
    assert "](javascript:" not in markdown(text)
    assert "http://" not in markdown(text)
    assert "www." not in markdown(text)


@given(ANYTHING | NASTY)
def test_python_literals_evaluate_to_the_text(text: str) -> None:
    literal = python_literal(text)
    assert eval(literal) == plain(text)
    assert not set(literal) & set("`<>\n")
    assert literal.isascii()


def test_forms_of_figures() -> None:
    assert percent(0.72349) == "72.3 %"
    assert percent(0.5, 2) == "50.00 %"
    assert interval(0.7, 0.744) == "70.0 to 74.4 %"
    assert decimal(0.12345) == "0.123"
    assert count(1234567) == "1,234,567"
    assert scientific(5e-5) == "5e-05"
    assert [duration(s) for s in (59.6, 61, 3600, 90_061)] == ["1 min 0 s", "1 min 1 s", "1 h 0 min", "25 h 1 min"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.5", True, [], {}])
def test_what_is_no_figure_is_not_made_one(value: object) -> None:
    shown = {percent(value), interval(value, 0.5), interval(0.5, value), decimal(value), count(value)}
    assert shown == {"n/a"}
    assert scientific(value) == duration(value) == "n/a"
