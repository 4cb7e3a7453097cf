"""Download the photographs: the HDF5 files of the Happy House and SIGNS sets.

    python -m datasets.download                  both sets, 24 MB, into datasets/
    python -m datasets.download happy            only train_happy.h5 and test_happy.h5 (or signs)
    python -m datasets.download --data-dir DIR   into another folder

sources.tsv lists several public mirrors of each file, pinned to commits. They are tried in order, over HTTPS only, and
a file is kept only if its SHA-256 is right. The exit code is 0 if all files are there, 1 if not, 2 for a wrong option
and 130 after Ctrl-C (143 after SIGTERM).
"""

import argparse
import os
import re
import sys
from pathlib import Path
from urllib.parse import urljoin

from basics import signals
from basics.errors import InputError, printable, run_main
from basics.files import describe_file, sha256

FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER / "sources.tsv"
GITHUB = "https://raw.githubusercontent.com"
# What each column of sources.tsv must match. No path can lead out of a folder.
COLUMNS = {
    "file": r"\w[\w-]*\.h5",
    "bytes": r"[1-9]\d*",
    "sha256": r"[0-9a-f]{64}",
    "github_repository": r"\w[\w.-]*/\w[\w.-]*",
    "commit": r"[0-9a-f]{40}",
    "path": r"\w[\w.-]*(/\w[\w.-]*)*",
}


def read_sources(path=SOURCES):
    """Return {file: {"size": bytes, "sha256": 64 hex digits, "addresses": list of https addresses}} from the table.

    Raises ValueError: a row is malformed, or the mirrors of a file differ in size or SHA-256.
    """
    sources = {}
    _, *rows = Path(path).read_text(encoding="utf-8").splitlines()
    for number, row in enumerate(rows, 2):
        if not re.fullmatch(r"\t".join(COLUMNS.values()), row, re.ASCII):
            raise ValueError(f"{path}, line {number} must hold {', '.join(COLUMNS)} (got {row!r})")
        name, size, digest, repository, commit, file = row.split("\t")
        source = sources.setdefault(name, {"size": int(size), "sha256": digest, "addresses": []})
        if (source["size"], source["sha256"]) != (int(size), digest):
            raise ValueError(f"{path}, line {number}: {name} has another size or SHA-256 above (got {row!r})")
        source["addresses"].append(f"{GITHUB}/{repository}/{commit}/{file}")
    return sources


def download_file(path, source, timeout):
    """Download a file from the first mirror that sends the right bytes, and print why earlier mirrors failed.

    Args:
        path: `pathlib.Path` of the file.
        source: an entry of `read_sources()`.
        timeout: float, the number of seconds without data after which a mirror is given up.

    Returns: bool, whether any mirror answered.
    """
    import pooch
    import requests
    from tqdm import tqdm

    answers = []

    def check_response(response, **_):
        answers.append(response.url)
        if response.is_redirect and not urljoin(response.url, response.headers["location"]).startswith("https://"):
            raise ValueError(f"refused a redirect that does not lead to HTTPS: {response.headers['location']}")
        response.raise_for_status()

    def download(address, temporary, _):
        os.remove(temporary)  # pooch made it readable by its owner only; a new file has the usual permissions
        with (
            requests.get(address, stream=True, timeout=timeout, hooks={"response": check_response}) as response,
            open(temporary, "xb") as file,
            tqdm(total=source["size"], unit="B", unit_scale=True, leave=False, disable=None) as bar,  # no bar in a log
        ):
            for chunk in response.iter_content(1 << 16):
                bar.update(file.write(chunk))
                if file.tell() > source["size"]:
                    break
        if os.path.getsize(temporary) != source["size"]:
            found = describe_file(temporary, "wrong size")
            raise ValueError(f"the file must have {source['size']:,} bytes (got {found})")

    pooch.get_logger().setLevel("WARNING")
    for address in source["addresses"]:
        try:
            pooch.retrieve(address, source["sha256"], path.name, path.parent, downloader=download)
            break
        except (requests.RequestException, ValueError) as error:  # pooch raises ValueError for a wrong SHA-256
            while error.__context__:  # requests and urllib3 wrap the original error in others
                error = error.__context__
            reason = str(error).partition(" for url: ")[0]  # the line names the address already
            print(f"  {address}: {printable(reason)[:200]}", file=sys.stderr)
    return bool(answers)


def _download_files(folder, sources, timeout):
    """Download the missing files; print the outcome for each, and what to do by hand. Return the exit code."""
    right, missing, answered = 0, [], True
    for name, source in sources.items():
        path = folder / name
        if not path.exists() and answered:
            print(f"{name}: downloading {source['size']:,} bytes ...", flush=True)
            answered = download_file(path, source, timeout)
        if not path.exists():
            missing.append(f"  {name:14}  {source['addresses'][0]}\n")
        elif sha256(path) == source["sha256"]:
            print(f"{name}: there, with the right SHA-256", flush=True)
            right += 1
        else:
            problem = f"{path} is not the file of photographs, and is not overwritten"
            fix = "Move it or delete it, then run this command again"
            found = f"{describe_file(path, 'or other data')}, SHA-256 {sha256(path)}"
            print(f"error: {InputError(problem, fix, found)}", file=sys.stderr)
    if missing:
        offline = "" if answered else "No mirror answered: this machine seems to be offline or behind a firewall.\n"
        print(
            f"\n{offline}The scripts also run without these files, on SYNTHETIC images. To get the photographs, try "
            f"again\nlater, or download them on another machine and put them into {folder}:\n{''.join(missing)}"
            f"{SOURCES} lists more mirrors. Then run the same command again to check the files.\n"
            f"{right} of {len(sources)} files are there.",
            file=sys.stderr,
        )
    return int(right < len(sources))


def seconds(text):
    """argparse type: a number of seconds, at most an hour."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number <= 3600:  # the operating system refuses years with an obscure error
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 3600 (got {text!r})")
    return number


def main(argv=None):
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m datasets.download", description="Download the photographs of Happy House and SIGNS."
    )
    parser.add_argument("set", nargs="?", choices=("happy", "signs"), help="the set to download (default: both)")
    parser.add_argument("--data-dir", metavar="DIR", type=Path, default=FOLDER, help="folder (default: %(default)s)")
    parser.add_argument("--timeout", metavar="SECONDS", type=seconds, default=20, help="longest wait (default: 20)")
    args = parser.parse_args(argv)
    sources = {name: source for name, source in read_sources(SOURCES).items() if (args.set or "") in name}
    folder = args.data_dir.resolve()
    try:
        return _download_files(folder, sources, args.timeout)
    except KeyboardInterrupt:
        print(f"Interrupted. No unfinished file is left in {folder}", file=sys.stderr)
        return signals.exit_code()
    except OSError as error:
        problem = f"The photographs cannot be saved: {error}"
        fix = "Choose a folder that can be written to and has room for 24 MB, with --data-dir"
        if error.errno is None:  # from requests, about the certificates that are to be trusted
            problem = f"The photographs cannot be downloaded: {error}"
            fix = "Unset REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE, or let them name a file of certificates"
        print(f"error: {InputError(problem, fix)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    run_main(main)
