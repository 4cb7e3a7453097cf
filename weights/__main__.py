"""Make the weights of a small network again: a training on SYNTHETIC images alone, with its script's defaults.

The files are the same to the last bit on the same kind of processor; another one rounds differently.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import zipfile

from support.errors import run_main
from support.files import atomic_write, sha256

HERE = pathlib.Path(__file__).resolve().parent
SCRIPTS = ("happy_sequential", "signs_functional")


def copy_model(model, path):
    """Copy a `.keras` file without the times in it, so that the same weights give the same file."""
    with zipfile.ZipFile(model) as source, atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "metadata.json":
                content = json.dumps({"keras_version": json.loads(content)["keras_version"]})
            target.writestr(zipfile.ZipInfo(name), content)


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
        options = ["--data", "synthetic", "--pretrain", "--seed", "1", "--output-dir", str(output)]
        process = subprocess.run([sys.executable, str(HERE.parent / f"{script}.py"), *options])
        if process.returncode:
            return process.returncode
        copy_model(output / "model.keras", HERE / f"{script}.keras")
        write_checksums()
        print(f"Saved {HERE / f'{script}.keras'}, {sha256(HERE / f'{script}.keras')}")


if __name__ == "__main__":
    run_main(main)
