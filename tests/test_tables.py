"""A table of results: the same rows as HTML and as text."""

from course.tables import Table

PRICES = Table(
    ("GPU", "type", "dollars"),
    [("T4", "float16", "0.59"), ("<H100>", "bfloat16", "13.95")],
    "Prices & more",
)


def test_the_text_is_aligned_and_numbers_stand_at_the_right():
    assert repr(PRICES).splitlines() == [
        "Prices & more",
        "GPU     type      dollars",
        "T4      float16      0.59",
        "<H100>  bfloat16    13.95",
    ]


def test_the_page_has_a_caption_and_header_cells_in_both_directions():
    page = PRICES._repr_html_()
    assert "<caption>Prices &amp; more</caption>" in page
    assert '<th scope="col" style="text-align:right">dollars</th>' in page
    assert '<th scope="row" style="text-align:left">&lt;H100&gt;</th>' in page
    assert page.count("<tr>") == 3


def test_a_long_caption_is_wrapped_as_text():
    long = Table(("a", "b"), [("x", "1-2")], "word " * 30)
    assert max(map(len, repr(long).splitlines())) <= 88
    assert repr(long).endswith("word\na    b\nx  1-2")
