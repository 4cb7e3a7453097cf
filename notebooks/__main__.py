"""Make the notebooks from the three scripts; run this after every change of a script.

pip install -r requirements.txt -r requirements-dev.txt && python -m notebooks
"""

import argparse
import ast
import pathlib
import re
import textwrap

from basics.errors import require, run_main
from basics.files import atomic_write

HERE = pathlib.Path(__file__).resolve().parent
SCRIPTS = ("happy_sequential", "signs_functional", "signs_resnet50")

START = """\
# Find the project's modules, which are in the folder above this notebook. Options of the script go into `options`.
import os
import sys

if not os.path.exists("cnn_utils.py"):
    os.chdir("..")
sys.path.insert(0, os.getcwd())
options = ""
sys.argv = ["{script}.py", *options.split()]"""


def lesson_cells(script):
    """Split the source of a script into cells: its docstring, its constants and functions, and the steps of `main`.

    Args:
        script: str, the script's name without ".py".

    Returns: list of ("markdown" or "code", text).
    """
    source = (HERE.parent / f"{script}.py").read_text(encoding="utf-8")
    lines = source.splitlines()
    title, *usage = ast.get_docstring(ast.parse(source)).split("\n")
    note = f"This notebook is made from `{script}.py` by `python -m notebooks`."
    cells = [("markdown", "\n".join([f"# {title}", *usage, "", note])), ("code", START.format(script=script))]
    begin = ast.parse(source).body[0].end_lineno
    for node in ast.parse(source).body[1:]:
        text = "\n".join(lines[begin : node.end_lineno])
        begin = node.end_lineno
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            cells += _steps(textwrap.dedent("\n".join(lines[node.lineno : node.end_lineno])))
        elif isinstance(node, ast.FunctionDef):
            cells.append(("code", text))
        elif "run_main" not in text:  # which ends a command, not a notebook
            before, condition, block = text.partition('if __name__ == "__main__":')  # always so in a notebook
            cells += _steps(
                before + textwrap.dedent(block).replace("__file__", f'"{script}.py"') if condition else text
            )
    cells = [(kind, re.sub(r"\n{3,}", "\n\n", text.strip("\n"))) for kind, text in _joined(cells)]
    return [cell for cell in cells if cell[1]]


def _steps(text):
    """Split statements at the comments that begin a numbered step; these comments become headings."""
    cells = []
    for part in re.split(r"^(?=# \d\. )", text, flags=re.MULTILINE):
        heading = re.match(r"# (\d\. .*)\n((?:#    .*\n)*)", part)
        if heading:
            title, _, rest = heading[1].partition(": ")
            words = [rest, *(line.removeprefix("#").strip() for line in heading[2].splitlines())]
            words = " ".join(words).strip()
            paragraph = f"\n\n{words[0].upper()}{words[1:]}" if words else ""
            cells.append(("markdown", f"## {title.rstrip('.')}{paragraph}"))
            part = part[heading.end() :]
        cells.append(("code", re.sub(r"^return (run\.\S+).*", r"_ = \1", part, flags=re.MULTILINE)))
    return cells


def _joined(cells):
    """Join code cells without a function that follow each other."""
    joined = []
    for kind, text in cells:
        before = joined[-1] if joined else ("", "")
        if kind == before[0] == "code" and not re.search(r"^def |^sys\.argv", before[1] + "\n" + text, re.MULTILINE):
            joined[-1] = ("code", f"{before[1]}\n{text}")
        else:
            joined.append((kind, text))
    return joined


def make_notebook(script):
    """Return the notebook of a script, `nbformat.NotebookNode`, without outputs."""
    require("nbformat", "Making notebooks", "nbformat>=5.10,<6")
    from nbformat import v4

    make = {"markdown": v4.new_markdown_cell, "code": v4.new_code_cell}
    cells = [make[kind](text, id=f"{script}-{number}") for number, (kind, text) in enumerate(lesson_cells(script))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def main(argv=None):
    argparse.ArgumentParser("python -m notebooks", description=__doc__.split("\n")[0]).parse_args(argv)
    for script in SCRIPTS:
        notebook = make_notebook(script)
        import nbformat

        with atomic_write(HERE / f"{script}.ipynb") as temporary:
            nbformat.write(notebook, temporary)
        print(f"Saved {HERE / f'{script}.ipynb'}")


if __name__ == "__main__":
    run_main(main)
