"""The notebooks: made from the scripts as they are, and every cell runs."""

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

from notebooks.__main__ import SCRIPTS, lesson_cells, make_notebook


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_notebook_is_that_of_its_script(script):
    saved = nbformat.read(ROOT / "notebooks" / f"{script}.ipynb", as_version=4)
    assert saved.cells == make_notebook(script).cells, "run python -m notebooks"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_step_has_a_heading_and_the_lesson_is_in_the_cells(script):
    cells = lesson_cells(script)
    headings = [text.split()[1] for kind, text in cells if kind == "markdown" and text.startswith("## ")]
    assert headings == [f"{number}." for number in range(1, 8)]
    code = "\n".join(text for kind, text in cells if kind == "code")
    assert all(f"model.{call}(" in code for call in ("compile", "fit", "evaluate", "predict"))
    assert "run_main" not in code and "__file__" not in code and "return run." not in code


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_cell_runs(script, tmp_path):
    notebook = make_notebook(script)
    (options,) = (cell for cell in notebook.cells if 'options = ""' in cell.source)
    words = f"--dry-run --data synthetic --output-dir {tmp_path / 'run'}"
    options.source = options.source.replace('options = ""', f'options = "{words}"')
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": ROOT / "notebooks"}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "Test accuracy" in printed and "Look at these next" in printed
    assert (tmp_path / "run" / "report.html").exists()
