"""The check on settings: what `test_diagnose.py` (every switch) and `attempts/settings.txt` do not prove."""

from course import check


def test_the_stub_is_told_apart():
    def stub(sections, text):
        raise NotImplementedError("your turn")

    assert "still the stub" in check.override(stub).message


def test_a_result_that_is_no_function_is_told():
    assert "Hand it your function itself" in check.override({}).message
