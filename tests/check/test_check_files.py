"""The checks of the exercises of files and errors, where the attempts do not reach."""

import sys

import pytest

from course import check
from slm.files import write_text


@pytest.mark.parametrize("name", ["whole_file", "all_mistakes"])
def test_stub_is_told_apart(name):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert "still the stub" in getattr(check, name)(stub).message


def test_the_package_s_own_writer_passes_and_nothing_is_left_listening():
    before = sys.getprofile()
    assert check.whole_file(write_text).passed
    assert sys.getprofile() is before


def test_only_the_file_is_not_there_yet():
    def only_if_there(path, text):
        if path.exists():
            write_text(path, text)

    assert "none is written" in check.whole_file(only_if_there).message
