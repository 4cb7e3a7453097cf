"""The style of all figures: fonts, titles, names cut to fit, and grids of images with captions.

Lengths are in inches, font sizes in points. A figure has 120 pixels per inch, so an image of 64 pixels is drawn 192
pixels wide: three for each of its own.
"""

import bisect
import contextlib
import functools
import math
import unicodedata

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from basics.files import atomic_write

DPI = 120
INK, GRAY, ACCENT, SECOND = "#22303c", "#8a97a3", "#1f6fb2", "#d9822b"
GRID, PANEL = "#d8dee4", "#f1f4f6"

# A character is drawn in the first of these fonts that has it. DejaVu Sans comes with Matplotlib and has Latin, Greek,
# Cyrillic, Hebrew and Arabic letters; the others have East Asian characters or emoji. `has_font` adds what is missing.
FONTS = ["DejaVu Sans"] + [
    name
    for name in (
        *("Noto Sans CJK JP", "Noto Sans JP", "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans", "Yu Gothic"),
        *("Hiragino Sans", "PingFang SC", "PingFang HK", "Apple SD Gothic Neo", "Microsoft YaHei", "Malgun Gothic"),
        *("Droid Sans Fallback", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Arial Unicode MS"),
        *("Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Leelawadee UI"),
        *("Noto Emoji", "Segoe UI Emoji", "Symbola"),
    )
    if name in font_manager.get_font_names()
]

STYLE = {
    "font.family": FONTS, "font.size": 10, "text.color": INK, "text.parse_math": False,  # a folder's name may hold a $
    "axes.labelcolor": INK, "axes.edgecolor": GRAY, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": INK, "ytick.color": INK, "grid.color": GRID, "grid.linewidth": 0.6, "legend.edgecolor": "none",
}  # fmt: skip

CAPTION = 8  # font size
LINE = 0.16  # height of a line of a caption
MARGIN = 0.2  # around everything, and between images
TILE = 1.6  # side of an image in a grid
BELOW_TILE = TILE + 0.1  # width of its caption
NARROWEST = 3.8  # width of a figure, for the sake of its title

# Decorates a function that draws: its texts and axes get the style, and nothing of the user's own matplotlibrc.
styled = plt.style.context(STYLE, after_reset=True)

_missing_reported = False


# ------------------------------------------------------------------------ text


@functools.cache
def has_font(character):
    """Return whether a font has a character; if none of FONTS has it, they get an installed font that does."""
    if any(_has_glyph(name, character) for name in FONTS):
        return True
    name = next((name for name in _other_fonts() if _has_glyph(name, character)), None)
    FONTS.extend([name] if name else [])
    return name is not None


def _has_glyph(name, character):
    font = font_manager.get_font(font_manager.findfont(name))
    return font.get_char_index(ord(character)) > 0


@functools.cache
def _other_fonts():
    """Return the names of all upright fonts, also of those that were installed after Matplotlib made its list."""
    listed = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in listed:
            with contextlib.suppress(Exception):  # a font may be damaged, or of a kind that Matplotlib cannot draw
                font_manager.fontManager.addfont(path)
    # Those that come with Matplotlib are for formulas, and those of last resort have a box for every character.
    names = {
        entry.name
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal"
        and not entry.fname.startswith(matplotlib.get_data_path())
        and "lastresort" not in entry.name.replace(" ", "").lower()
    }
    return sorted(names, key=lambda name: ("Sans" not in name, name))


def _visible(text):
    """Return the characters of a text that need a font, a set."""
    return {character for character in text if unicodedata.category(character)[0] not in "CMZ"}


@functools.lru_cache(10_000)
@styled
def text_width(text, size=CAPTION, weight="normal"):
    """Return the width of a line of text in inches."""
    for character in _visible(text):
        has_font(character)
    family = FONTS[0] if weight == "bold" else FONTS  # the others have no bold letters
    font = FontProperties(family=family, size=size, weight=weight)
    width, _, _ = RendererAgg(1, 1, DPI).get_text_width_height_descent(text, font, ismath=False)
    return width / DPI


def fit(name, width, before="", after="", size=CAPTION):
    """Return the line before + name + after; if it is wider than `width`, "…" replaces the middle of the name."""
    whole = before + _isolated(name) + after
    if text_width(whole, size) <= width:
        return whole

    def line(kept):
        tail = kept // 3
        return before + _isolated(f"{name[: kept - tail]}…{name[len(name) - tail :]}") + after

    numbers = range(1, min(len(name), 100))  # of characters; a file name may have 255
    fitting = bisect.bisect_right(numbers, width, key=lambda kept: text_width(line(kept), size))
    return line(max(fitting, 1))


def _isolated(name):
    """Keep a right-to-left name from reordering the text beside it (Unicode Annex 9, explicit isolates)."""
    if any(unicodedata.bidirectional(character) in ("R", "AL") for character in name):
        return f"\N{FIRST STRONG ISOLATE}{name}\N{POP DIRECTIONAL ISOLATE}"
    return name


def wrap(text, width, size=CAPTION, weight="normal"):
    """Return the text as a list of lines that are at most `width` wide."""
    lines = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size, weight) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def balanced(text, width, size=CAPTION, weight="normal"):
    """Return as many lines as `wrap` does, of about the same width."""
    lines = narrower = wrap(text, width, size, weight)
    while len(narrower) == len(lines) > 1:
        lines, width = narrower, width - 0.1
        narrower = wrap(text, width, size, weight)
    return lines


# --------------------------------------------------------------------- figures


@styled
def new_figure(width, height, title, kind):
    """Return an empty figure with a title, above `height`.

    Args:
        width, height: float, without the title.
        title: str, wrapped if it is too long.
        kind: of the data: "real", "synthetic", which is added to the title, or "folder".
    """
    bold = {"size": 12, "weight": "bold"}
    mark = "  |  SYNTHETIC data" if kind == "synthetic" else ""
    lines = [title + mark]
    if text_width(lines[0], **bold) > width - MARGIN:
        lines = balanced(title, width - MARGIN, **bold) + ([mark.strip(" |")] if mark else [])
    full_height = height + 0.24 * len(lines) + MARGIN
    # Whole pixels, so that images are not resampled.
    width, full_height = (math.ceil(side * DPI - 0.01) / DPI for side in (width, full_height))
    figure = plt.figure(figsize=(width, full_height), dpi=DPI, facecolor="white")
    title = figure.suptitle("\n".join(lines), x=0.5, y=1 - 0.1 / full_height, va="top", family=FONTS[0], **bold)
    title.set_in_layout(False)  # its place is known
    return figure


def place_axes(figure, left, bottom, width, height):
    """Return new axes of this size; `left` and `bottom` are the distances from the figure's edges."""
    full_width, full_height = figure.get_size_inches()
    return figure.add_axes((left / full_width, bottom / full_height, width / full_width, height / full_height))


def place_text(figure, x, y, text, **options):
    """Write text at (x, y), measured from the figure's lower left corner; options as in `figure.text`."""
    return figure.text(x, y, text, transform=figure.dpi_scale_trans, **options)


def place_image(figure, left, bottom, side, image):
    """Draw an image in the middle of a square; if it is enlarged evenly, its pixels are not smoothed."""
    left, bottom = round(left * DPI) / DPI, round(bottom * DPI) / DPI
    ax = place_axes(figure, left, bottom, side, side)
    height, width = np.shape(image)[:2]
    longest = max(height, width)
    ax.imshow(image, interpolation="antialiased" if round(side * DPI) % longest else "nearest")
    ax.set(xlim=((width - longest) / 2 - 0.5, (width + longest) / 2 - 0.5), xticks=[])
    ax.set(ylim=((height + longest) / 2 - 0.5, (height - longest) / 2 - 0.5), yticks=[])
    ax.axis("off")


@styled
def save_figure(figure, path):
    """Save a figure as a PNG."""
    _report_missing_characters(figure)
    for text in figure.findobj(Text):
        if text.get_fontweight() != "bold":
            text.set_fontfamily(FONTS)  # one may have been added since the text was written
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def _report_missing_characters(figure):
    """Print, once in a process, which characters no font has: boxes are drawn in their place."""
    global _missing_reported
    visible = set().union(*(_visible(text.get_text()) for text in figure.findobj(Text)))
    missing = sorted(character for character in visible if not has_font(character))
    if missing and not _missing_reported:
        _missing_reported = True
        scripts = {unicodedata.name(character, "").split()[0] for character in missing}
        font = "Noto Sans CJK (on Ubuntu and Debian: apt install fonts-noto-cjk)"
        if not scripts <= {"CJK", "HIRAGANA", "KATAKANA", "HANGUL"}:
            font = "Noto Sans or Noto Emoji"
        print(
            f"No font for {' '.join(missing[:10])}: the figures show boxes instead. Install a font that has these "
            f"characters, such as {font}"
        )


@styled
def show_figures():
    """Show every figure made so far, and wait until the windows are closed; a notebook shows them below the cell."""
    if plt.get_backend().lower() in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE):
        print("There is no display to show the figures on, but they are saved")
    else:
        plt.show()


@styled
def image_grid(images, captions, title, path, kind, *, empty="", group=1, color_bar=None):
    """Save a figure of images with captions below them, six in a row.

    Args:
        images: sequence of images, uint8 (height, width, 3).
        captions: list of str, one for each image; no line may be wider than BELOW_TILE, see `fit` and `wrap`.
        title, kind: see `new_figure`.
        path: the PNG file to write.
        empty: str, written in place of the images if there are none.
        group: int, this many images, one beside the other, belong together and share a background.
        color_bar: None, or colors (n, 3) and what the first and the last of them mean.
    """
    padding = 0.1 if group > 1 else 0.0
    groups = math.ceil(len(images) / group)
    columns = max(1, min(6 // group, groups))
    lines = max((1 + caption.count("\n") for caption in captions), default=0)
    group_width = group * (TILE + padding) + padding
    group_height = TILE + 0.05 + LINE * lines + 2 * padding
    content = columns * (group_width + MARGIN) - MARGIN
    width = max(NARROWEST, content + 2 * MARGIN)
    below = 0.65 if color_bar else 0.1
    height = math.ceil(groups / columns) * (group_height + MARGIN) - MARGIN + below if groups else 0.8
    figure = new_figure(width, height, title, kind)
    if not groups:
        text = "\n".join(balanced(empty, width - 2 * MARGIN, 10))
        place_text(figure, width / 2, height / 2, text, ha="center", va="center", fontsize=10)
    for number, (image, caption) in enumerate(zip(images, captions)):
        row, column = divmod(number // group, columns)
        left = (width - content) / 2 + column * (group_width + MARGIN)
        bottom = height - row * (group_height + MARGIN) - group_height
        if group > 1 and number % group == 0:
            background = Rectangle((left, bottom), group_width, group_height, facecolor=PANEL, zorder=-1)
            background.set_transform(figure.dpi_scale_trans)
            figure.add_artist(background)
        left += padding + number % group * (TILE + padding)
        top = bottom + group_height - padding
        place_image(figure, left, top - TILE, TILE, image)
        middle = left + TILE / 2
        place_text(figure, middle, top - TILE - 0.05, caption, ha="center", va="top", fontsize=CAPTION)
    if color_bar:
        colors, low, high = color_bar
        ax = place_axes(figure, width / 2 - 1.5, 0.35, 3, 0.12)
        ax.imshow(np.asarray(colors)[None], aspect="auto")
        ax.axis("off")
        place_text(figure, width / 2 - 1.5, 0.3, low, ha="left", va="top", fontsize=CAPTION)
        place_text(figure, width / 2 + 1.5, 0.3, high, ha="right", va="top", fontsize=CAPTION)
    save_figure(figure, path)
