"""Text in columns: how wide characters are in a terminal."""

import unicodedata


def display_width(text):
    """Return the number of columns that a text takes in a terminal: two for a CJK character or an emoji."""
    # Combining marks and control characters take no column of their own.
    return sum(
        2 if unicodedata.east_asian_width(char) in "WF" else unicodedata.category(char) not in ("Mn", "Me", "Cf")
        for char in text
    )


def pad(text, width):
    """Return the text with spaces added up to `width` columns."""
    return text + " " * (width - display_width(text))
