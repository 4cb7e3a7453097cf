"""--seeds and --folds: what is printed and saved about several runs."""

import csv
import json
import types

import pytest

from support import seeds


def metrics(confusion):
    """Return the part of a run's metrics.json that counts here, for two classes."""
    (a, b), (c, d) = confusion
    results = {
        "confusion_matrix": confusion,
        "test_examples": a + b + c + d,
        "test_accuracy": (a + d) / (a + b + c + d),
        "test_balanced_accuracy": (a / (a + b) + d / (c + d)) / 2,
        "certainty": {"sure": {"answers": a + d, "wrong": 1}},
    }
    return {"results": results}


def run(kind, confusions, folder, monkeypatch):
    """Sum up runs with these confusion matrices, by number; return the rows of the table and the summary."""
    monkeypatch.setattr(seeds, "_run_each", lambda *_: ({n: metrics(c) for n, c in confusions.items()}, 0))
    args = types.SimpleNamespace(seed=min(confusions), seeds=len(confusions), folds=len(confusions), output_dir=folder)
    assert (seeds.run_seeds if kind == "seed" else seeds.run_folds)(args) == 0
    with open(folder / f"{kind}s.csv", newline="") as file:
        return list(csv.DictReader(file)), json.loads((folder / f"{kind}s.json").read_text())


@pytest.mark.parametrize("kind", ["seed", "fold"])
def test_runs_that_differ_have_an_interval(kind, tmp_path, monkeypatch, capsys):
    rows, summary = run(kind, {1: [[9, 1], [0, 10]], 2: [[8, 2], [1, 9]]}, tmp_path, monkeypatch)
    assert [(row[kind], row["images"], row["right"]) for row in rows] == [("1", "20", "19"), ("2", "20", "17")]
    assert [float(row["accuracy"]) for row in rows] == pytest.approx([0.95, 0.85])
    assert [float(row["balanced accuracy"]) for row in rows] == pytest.approx([0.95, 0.85])
    assert list(rows[0]) == [kind, "images", "right", "accuracy", "balanced accuracy"]
    assert summary["mean"] == pytest.approx(0.9) and summary["mean_interval"][0] < 0.85
    said = capsys.readouterr().out
    assert "\nMean 90.00%, standard deviation 7.07%, 95% interval of the mean " in said
    assert said.count(f"{kind}s.csv") == 1


def test_folds_add_up_their_sure_answers(tmp_path, monkeypatch, capsys):
    _, summary = run("fold", {1: [[9, 1], [0, 10]], 2: [[8, 2], [1, 9]]}, tmp_path, monkeypatch)
    assert summary["sure"] == {"answers": 36, "wrong": 2}
    assert "\nSure answers: 36 of 40, 2 of them wrong\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "code, interrupted, expected",
    [("0", False, 0), ("3", False, 3), ("-2", False, 130), ("0", True, 130), ("130", True, 130)],
)
def test_the_exit_code_of_a_run_is_that_of_a_shell(code, interrupted, expected, monkeypatch):
    """An interrupt that reached only this process lets the run finish, but no other one is to start."""

    class Process:
        returncode, waited = None, not interrupted

        def __init__(self, command):
            pass

        def poll(self):
            return self.returncode

        def wait(self):
            if not self.waited:
                self.waited = True
                raise KeyboardInterrupt
            self.returncode = int(code)

    monkeypatch.setattr(seeds.subprocess, "Popen", Process)
    monkeypatch.setattr(seeds.signals, "_received", 0)
    assert seeds.run_command(["a", "command"]) == expected


@pytest.mark.parametrize("kind", ["seed", "fold"])
def test_runs_that_agree_have_no_empty_interval(kind, tmp_path, monkeypatch, capsys):
    rows, summary = run(kind, {n: [[10, 0], [1, 9]] for n in (4, 5, 6)}, tmp_path, monkeypatch)
    assert [row[kind] for row in rows] == ["4", "5", "6"] and "mean_interval" not in summary
    said = capsys.readouterr().out
    assert f"\nMean 95.00%, standard deviation 0.00% (the {kind}s agree)\n" in said
    assert "interval of the mean" not in said


@pytest.mark.parametrize(
    "code, words", [(130, "was interrupted, so no other is started"), (2, "failed with exit code 2")]
)
def test_no_run_starts_after_one_that_ended_early(code, words, tmp_path, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(seeds, "run_command", lambda command: commands.append(command) or code)
    args = types.SimpleNamespace(output_dir=tmp_path, cache_dir=tmp_path, seed=1, seeds=2)
    assert seeds.run_seeds(args) == code and len(commands) == 1
    assert capsys.readouterr().err == f"error: the run with seed 1 {words}\n"
