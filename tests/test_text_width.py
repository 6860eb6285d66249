"""Columns of tables in a terminal: wide and narrow characters, and every table with names that users chose."""

from __future__ import annotations

import pytest

from partialnet.bench.contestants import Setting
from partialnet.bench.report import Row, as_table
from partialnet.bench.timing import Timing
from partialnet.text_width import in_one_line, left_aligned, text_width


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("", 0),
        ("Übergröße", 9),
        ("猫", 2),
        ("고양이", 6),
        ("ネコ", 4),
        ("ﾈｺ", 2),  # the narrow ones
        ("ＡＢ", 4),  # the wide ones
        ("кот, γάτα", 9),
        ("U\u0308ber", 4),  # an accent of its own, as macOS has them in names of files
        ("🐈", 2),
        ("\udcfcber", 4),  # not UTF-8
    ],
)
def test_width_of_a_text(text: str, width: int) -> None:
    assert text_width(text) == width
    assert left_aligned(text, 10) == text + " " * (10 - width)
    assert left_aligned(text, 1).startswith(text)


def test_a_name_in_one_line() -> None:
    assert in_one_line("a\nb\t\x1b[31m\u0085.jpg") == r"a\nb\t\x1b[31m\x85.jpg"
    assert in_one_line("C:\\Über 猫's.jpg\udcfc") == "C:\\Über 猫's.jpg\udcfc"


def test_networks_in_the_table_of_bench() -> None:
    timing = Timing(4.0, 3.0, 5.0, 1.0, 1.0, 1.0, 9)
    names = ("resnet18", "runs/고양이")
    rows = [Row(name, "resnet18", Setting(), (3, 32, 32), timing, 11.69, 1.814) for name in names]
    head, first, second = as_table(rows).splitlines()
    assert head.startswith("runtime     network      folded params M   MACs G")
    assert first.startswith("eager       resnet18               11.69    1.814")
    assert second.startswith("eager       runs/고양이            11.69    1.814")  # takes three columns more
