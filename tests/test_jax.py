"""JAX in TensorFlow's place: the scripts train, predict and explain, and a saved model gives the same answers."""

import csv
import json

import keras
import numpy as np
import pytest
from conftest import run_code, run_script

import signs_functional
from support.prediction.explain import grad_cam

pytest.importorskip("jax")


@pytest.fixture
def on_jax(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    return monkeypatch


def read_row(folder):
    """Return the only row of the table that --predict has written."""
    with open(folder / "predictions" / "predictions.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    return row


@pytest.mark.slow
# JAX compiles a step for minutes if the network has 50 layers. For signs_functional.py, see test_distribution.py.
@pytest.mark.parametrize(
    "script, options", [("happy_sequential", ()), ("signs_resnet50", ("--identity-blocks", 0, 1, 1, 0))]
)
def test_a_script_trains_and_explains_on_jax_and_predicts_the_same_without_it(script, options, on_jax, tmp_path):
    process = run_script(script, "--dry-run", "--data", "synthetic", *options, "--output-dir", tmp_path)
    assert process.returncode == 0 and "JAX" in process.stdout.splitlines()[0], process.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["settings"]["backend"] == "jax" and set(metrics["training"]["versions"]) >= {"jax", "keras"}
    # On a processor, JAX is slower in 16 bits.
    assert metrics["settings"]["mixed_precision"] is False and metrics["training"]["seconds"] > 0
    image = tmp_path / "examples.png"
    explained = run_script(script, "--predict", image, "--explain", "--crop", "center", "--output-dir", tmp_path)
    assert explained.returncode == 0 and (tmp_path / "predictions" / "explanations.png").exists(), explained.stderr
    row = read_row(tmp_path)
    on_jax.delenv("KERAS_BACKEND")
    again = run_script(script, "--predict", image, "--crop", "center", "--output-dir", tmp_path)
    assert again.returncode == 0 and "JAX" not in again.stdout, again.stderr
    other = read_row(tmp_path)
    assert (other["file"], other["class"]) == (row["file"], row["class"])
    probabilities = [key for key in row if key.startswith("probability ")]
    assert len(probabilities) == len(metrics["results"]["classes"])
    for key in probabilities:
        assert float(other[key]) == pytest.approx(float(row[key]), abs=1e-4)


@pytest.mark.slow
def test_exports_run_on_tensorflow_all_the_same(on_jax, tmp_path):
    process = run_script("signs_functional", "--export", "web", "--weights", "synthetic", "--output-dir", tmp_path)
    assert process.returncode == 0 and (tmp_path / "live.html").exists(), process.stderr
    assert "TensorFlow" in process.stdout.splitlines()[0]


@pytest.mark.slow
def test_grad_cam_is_the_same_on_jax(on_jax, tmp_path):
    keras.utils.set_random_seed(1)
    model = signs_functional.build_model()
    model.save(tmp_path / "model.keras")
    code = """
import keras, numpy as np
from support.prediction.explain import grad_cam
image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
heatmap = grad_cam(keras.models.load_model(sys.argv[1], compile=False), image, 2)
print(keras.config.backend(), *heatmap.ravel())
"""
    backend, *values = run_code(code, tmp_path / "model.keras").stdout.split()
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    expected = grad_cam(model, image, 2)
    assert backend == "jax" and expected.max() == 1
    np.testing.assert_allclose(np.array(values, float), expected.ravel(), atol=1e-4)
