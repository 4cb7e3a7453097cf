"""Text in columns of a terminal."""

import pytest

from basics.text import display_width, pad


@pytest.mark.parametrize(
    "text, width",
    [("", 0), ("abc", 3), ("Müller", 6), ("東京", 4), ("🙂", 2), ("e\u0301", 1), ("العربية", 7), ("a\u200db", 2)],
)
def test_the_width_of_a_text_is_that_on_a_terminal(text, width):
    assert display_width(text) == width
    assert display_width(pad(text, 9)) == 9 and pad(text, 9).startswith(text)


def test_a_text_that_is_too_long_is_left_alone():
    assert pad("東京", 3) == "東京"
