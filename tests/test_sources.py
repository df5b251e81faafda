"""The pages of the modules: what is defined can be linked to by name, and a badge leads there."""

import pytest

from course.sources import address, places

SOURCE = '''\
"""Text."""

import os

A = B = 1


@decorated
class Model:
    size: int = 3

    def __init__(self): ...

    @property
    def wide(self): ...


def f(): ...
'''


def test_each_definition_is_a_place():
    assert places(SOURCE) == {
        "A": 5,
        "B": 5,
        "Model": 8,
        "Model.size": 10,
        "Model.__init__": 12,
        "Model.wide": 14,
        "f": 18,
    }


@pytest.mark.parametrize(
    ("cell", "place"),
    [
        ("def f(): ...", "#f"),
        ("A = 1\n\ndef f(): ...", "#A"),
        ("@add_to(Model)\ndef forward(self): ...", "#Model.forward"),
        ("import os", ""),
    ],
)
def test_a_badge_leads_to_the_first_definition_of_its_cell(cell, place):
    assert address("slm/model/gpt.py", cell) == f"modules/slm/model/gpt.html{place}"
