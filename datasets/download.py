"""Download the photographs: the HDF5 files of the Happy House and SIGNS sets.

    python -m datasets.download                  both sets, 24 MB, into datasets/
    python -m datasets.download happy            only train_happy.h5 and test_happy.h5 (or signs)
    python -m datasets.download --data-dir DIR   into another folder

sources.tsv lists several public mirrors of each file, pinned to commits. They are tried in order, over HTTPS only, and
a file is kept only if its SHA-256 is right. Exit code: 0 if all files are there, 1 if not, 2 for a wrong option, 130
after Ctrl-C.
"""

import argparse
import os
import re
import sys
from pathlib import Path
from urllib.parse import urljoin

from support.errors import INTERRUPTED, printable
from support.files import describe_file, sha256

FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER / "sources.tsv"
GITHUB = "https://raw.githubusercontent.com"
# A row of sources.tsv: file, bytes, sha256, git_blob_sha1, github_repository, commit, path. No path leads outside.
ROW = r"\w[\w-]*\.h5\t[1-9]\d*\t[0-9a-f]{64}\t[0-9a-f]{40}\t\w[\w.-]*/\w[\w.-]*\t[0-9a-f]{40}\t\w[\w.-]*(/\w[\w.-]*)*"


def read_sources(path=SOURCES):
    """Return {file: {"size": bytes, "sha256": 64 hex digits, "addresses": list of https addresses}} from the table.

    Raises ValueError: a row is malformed, or the mirrors of a file differ in size or SHA-256.
    """
    sources = {}
    header, *rows = Path(path).read_text(encoding="utf-8").splitlines()
    for number, row in enumerate(rows, 2):
        if not re.fullmatch(ROW, row, re.ASCII):
            raise ValueError(f"{path}, line {number}: expected {', '.join(header.split())}. Received: {row!r}")
        name, size, digest, _, repository, commit, file = row.split("\t")
        source = sources.setdefault(name, {"size": int(size), "sha256": digest, "addresses": []})
        if (source["size"], source["sha256"]) != (int(size), digest):
            raise ValueError(f"{path}, line {number}: expected bytes and sha256 as before. Received: {row!r}")
        source["addresses"].append(f"{GITHUB}/{repository}/{commit}/{file}")
    return sources


def download_file(path, source, timeout):
    """Download a file from the first mirror that sends the right bytes, and print why the ones before it failed.

    `source` is an entry of `read_sources()`. A mirror is given up after `timeout` seconds of silence.
    Returns whether any mirror answered.
    """
    import pooch
    import requests
    from tqdm import tqdm

    answers = []

    def check_response(response, **_):
        answers.append(response.url)
        if response.is_redirect and not urljoin(response.url, response.headers["location"]).startswith("https://"):
            raise ValueError(f"redirect refused because it does not lead to HTTPS: {response.headers['location']}")
        response.raise_for_status()

    def download(address, temporary, _):
        os.remove(temporary)  # pooch lets only its owner read it; a new file has the usual permissions
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
            received = describe_file(temporary, "of the wrong size")
            raise ValueError(f"expected {source['size']:,} bytes. Received: {received}")

    pooch.get_logger().setLevel("WARNING")
    for address in source["addresses"]:
        try:
            pooch.retrieve(address, source["sha256"], path.name, path.parent, downloader=download)
            break
        except (requests.RequestException, ValueError) as error:  # pooch raises ValueError for a wrong SHA-256
            while error.__context__:  # the first error, which requests and urllib3 wrap in others
                error = error.__context__
            reason = str(error).partition(" for url: ")[0]  # the address is on the line already
            print(f"  {address}: {printable(reason)[:200]}", file=sys.stderr)
    return bool(answers)


def _download_files(folder, sources, timeout):
    """Download the missing files; print what became of each, and what to do by hand. Return the exit code."""
    right, missing, answered = 0, [], True
    for name, source in sources.items():
        path = folder / name
        if not path.exists() and answered:
            print(f"{name}: downloading {source['size']:,} bytes ...", flush=True)
            answered = download_file(path, source, timeout)
        if not path.exists():
            missing.append(f"  {name:14}  {source['addresses'][0]}\n")
        elif sha256(path) == source["sha256"]:
            print(f"{name}: there, SHA-256 as expected.", flush=True)
            right += 1
        else:
            print(
                f"{name}: another file has this name and is not overwritten. Expected {source['size']:,} bytes with "
                f"SHA-256 {source['sha256']}; move {path} away or delete it, then run this again. "
                f"Received: {describe_file(path, 'or one with other data')} with SHA-256 {sha256(path)}",
                file=sys.stderr,
            )
    if missing:
        offline = "" if answered else "No mirror answered: this machine seems to be offline or behind a firewall.\n"
        print(
            f"\n{offline}The scripts run without these files too, on the SYNTHETIC set. For the photographs, try again "
            f"later, or\ndownload them on another machine and put them into {folder}:\n{''.join(missing)}"
            f"More mirrors are in {SOURCES}. Then run the same command again to check the files.\n"
            f"Received: {right} of {len(sources)} files.",
            file=sys.stderr,
        )
    return int(right < len(sources))


def main(argv=None):
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m datasets.download", description="Download the photographs of Happy House and SIGNS."
    )
    parser.add_argument("set", nargs="?", choices=("happy", "signs"), help="the set to download (default: both)")
    parser.add_argument("--data-dir", metavar="DIR", type=Path, default=FOLDER, help="folder (default: %(default)s)")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=20, help="longest wait (default: 20)")
    args = parser.parse_args(argv)
    if not 0 < args.timeout <= 3600:  # the operating system refuses years with an obscure error
        parser.error(f"--timeout must be > 0 and at most 3600 seconds. Received: {args.timeout:g}")
    sources = {name: source for name, source in read_sources(SOURCES).items() if (args.set or "") in name}
    folder = args.data_dir.resolve()
    try:
        return _download_files(folder, sources, args.timeout)
    except KeyboardInterrupt:
        print(f"Interrupted: no unfinished file is left in {folder}.", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        print(f"Not saved: expected a folder to write to, with room for 24 MB. Received: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
