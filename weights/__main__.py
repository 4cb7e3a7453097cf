"""Make the weights of a small network again: a training on SYNTHETIC images alone, with its script's defaults.

On the same kind of processor, the files are the same to the last bit; another kind rounds differently.
"""

import argparse
import io
import json
import pathlib
import subprocess
import sys
import zipfile

import h5py
import numpy as np

from support.errors import run_main
from support.files import atomic_write, sha256

HERE = pathlib.Path(__file__).resolve().parent
SCRIPTS = ("happy_sequential", "signs_functional")


def copy_model(model, path):
    """Copy a `.keras` file without the optimizer and the times, with float16 weights: small, and the same each time."""
    with zipfile.ZipFile(model) as source, atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "metadata.json":
                content = json.dumps({"keras_version": json.loads(content)["keras_version"]})
            elif name == "config.json":
                content = json.dumps({**json.loads(content), "compile_config": None})
            elif name == "model.weights.h5":
                content = _as_float16(content)
            target.writestr(zipfile.ZipInfo(name), content)


def _as_float16(content):
    """Return a file of weights, bytes, without the optimizer and with float16 arrays, which Keras reads as float32."""
    half = io.BytesIO()
    with h5py.File(io.BytesIO(content), "r") as source, h5py.File(half, "w") as target:

        def copy(name, item):
            if name.startswith("optimizer"):
                return
            if isinstance(item, h5py.Dataset):
                target[name] = item[()].astype(np.float16)
            else:
                target.require_group(name).attrs.update(item.attrs)

        source.visititems(copy)
    return half.getvalue()


def write_checksums():
    """Write the SHA-256 of each file to SHA256SUMS, as `sha256sum --check` reads it."""
    lines = [f"{sha256(path)}  {path.name}\n" for path in sorted(HERE.glob("*.keras"))]
    with atomic_write(HERE / "SHA256SUMS") as temporary:
        temporary.write_text("".join(lines), encoding="ascii")


def main(argv=None):
    parser = argparse.ArgumentParser("python -m weights", description=__doc__)
    parser.add_argument("script", nargs="?", choices=SCRIPTS, help="the script (default: both)")
    args = parser.parse_args(argv)
    for script in [args.script] if args.script else SCRIPTS:
        output = HERE.parent / "outputs" / "weights" / script
        # After so much pre-training, a short fine-tuning with small steps is enough.
        options = ["--data", "synthetic", "--pretrain", "--epochs", "10", "--learning-rate", "0.001", "--seed", "1"]
        options += ["--output-dir", str(output)]
        process = subprocess.run([sys.executable, str(HERE.parent / f"{script}.py"), *options])
        if process.returncode:
            return process.returncode
        copy_model(output / "model.keras", HERE / f"{script}.keras")
        write_checksums()
        print(f"Saved {HERE / f'{script}.keras'}, {sha256(HERE / f'{script}.keras')}")


if __name__ == "__main__":
    run_main(main)
