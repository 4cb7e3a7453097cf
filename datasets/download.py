"""Fetches the photographs: the four HDF5 files of the Happy House and SIGNS sets.

    python -m datasets.download                  both sets, 24 MB, into datasets/
    python -m datasets.download happy            train_happy.h5 and test_happy.h5
    python -m datasets.download signs            train_signs.h5 and test_signs.h5
    python -m datasets.download --data-dir DIR   into another folder

sources.tsv, beside this file, lists several public mirrors of each file, pinned
to commits. They are tried in order, over HTTPS only. The bytes are written
aside, and get the file's name when their number and their SHA-256 are the
expected ones: what stands under that name is the whole file or nothing.

Exit status: 0 when all the files are there, 1 when one could not be had,
2 for a wrong option, 130 after Ctrl-C.
"""

import argparse
import csv
import hashlib
import http.client
import os
import re
import secrets
import socket
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

from datasets import kind_of_file

# From this file, not from the working directory: the command works from anywhere.
FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER / "sources.tsv"

SETS = {"happy": ("train_happy.h5", "test_happy.h5"),
        "signs": ("train_signs.h5", "test_signs.h5")}

# No separator, no dot but the last, no drive letter: such a name stays in its folder.
FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9_-]*\.h5"

# Fixed here, so that no line of the table can choose another scheme or host.
RAW_FILES = "https://raw.githubusercontent.com/"

# Seconds of silence after which a mirror is given up. A slow line is never that
# silent, and a host with several IP addresses costs this much for each of them.
TIMEOUT = 20

# An hour. The operating system refuses time-outs of many years with an obscure error.
LONGEST_TIMEOUT = 3600

# Bytes handled at a time: small beside the files, large beside the cost of a call.
CHUNK = 1 << 16

# Bytes that are kept to say what a wrong file is: enough for the longest beginning in `kind_of_file`.
HEAD = 64

# Characters of a text from the network that are worth a line on the screen.
LONGEST_TEXT = 200


class DownloadError(Exception):
    """A mirror, or all mirrors of a file, did not give the expected bytes."""


class Unreachable(DownloadError):
    """A mirror, or all mirrors of a file, gave no answer at all."""


# ---------------------------------------------------------------- the table


def read_sources(path=SOURCES):
    """Reads the table of mirrors, one row for each.

    Args:
        path: path of a tab-separated file with a header and at least the columns
            file, bytes, sha256, github_repository, commit, path.

    Returns:
        dict, file name to {"size": bytes, "sha256": 64 hex digits,
        "addresses": list of https addresses in the order of the table}.

    Raises:
        OSError: the table cannot be read.
        ValueError: a row lacks a column, has a malformed value, or gives a file
            another size or hash than an earlier row.
    """
    sources = {}
    with open(path, newline="", encoding="utf-8") as table:
        for row in csv.DictReader(table, delimiter="\t"):
            check_row(row, path)
            facts = {"size": int(row["bytes"]), "sha256": row["sha256"]}
            source = sources.setdefault(row["file"], {**facts, "addresses": []})
            if any(source[key] != value for key, value in facts.items()):
                raise ValueError(
                    f"All mirrors of a file must have one size and one SHA-256: correct the rows of "
                    f"{row['file']} in {path}. Received: {source['size']} and {source['sha256']}, "
                    f"then {facts['size']} and {facts['sha256']}.")
            source["addresses"].append(raw_address(row))
    return sources


def check_row(row, path):
    """Raises ValueError unless every value of a row of the table has its form."""
    forms = {"file": (FILE_NAME, "a plain name that ends with .h5"),
             "bytes": (r"[1-9][0-9]*", "a whole number > 0"),
             "sha256": (r"[0-9a-f]{64}", "64 hex digits in lower case"),
             "github_repository": (r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", "owner/name"),
             "commit": (r"[0-9a-f]{40}", "40 hex digits in lower case"),
             "path": (r"[A-Za-z0-9_-][A-Za-z0-9_./-]*", "a path inside the repository")}
    for column, (form, words) in forms.items():
        value = row.get(column)
        if not re.fullmatch(form, value or "") or ".." in value:
            raise ValueError(f"The column {column!r} must hold {words}: correct {path}. "
                             f"Received: {value!r}")


def raw_address(row):
    """Returns the https address, a str, of the file that a row of the table describes."""
    place = "/".join((row["github_repository"], row["commit"], row["path"]))
    return RAW_FILES + urllib.parse.quote(place)


# ---------------------------------------------------------------- HTTPS and nothing else


def check_https(address):
    """Raises ValueError unless `address`, a str, is an https address with a host."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError(f"Files are fetched over HTTPS only: give an address that begins with https://. "
                         f"Received: {address}")


class HTTPSRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect when it leads to https, and only then."""

    def redirect_request(self, request, answer, code, message, headers, address):
        if urllib.parse.urlsplit(address).scheme != "https":
            answer.close()
            raise urllib.error.URLError(f"redirect refused, it does not lead to https: {address}")
        return super().redirect_request(request, answer, code, message, headers, address)


def https_opener(https_handler=None):
    """Builds what opens the addresses: it knows no scheme but https.

    urllib's usual opener also has handlers for http, ftp, file and data. Here
    they are absent, so neither a table nor a redirect can make use of them.

    Args:
        https_handler: `urllib.request.HTTPSHandler` that carries the requests;
            None for one that verifies certificate and host name.

    Returns:
        `urllib.request.OpenerDirector`.
    """
    if https_handler is None:
        https_handler = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    # Of the user's proxies only the one for https, through which TLS passes unopened.
    proxies = {scheme: proxy for scheme, proxy in urllib.request.getproxies().items()
               if scheme == "https"}
    opener = urllib.request.OpenerDirector()
    for handler in (https_handler,
                    HTTPSRedirects(),
                    urllib.request.ProxyHandler(proxies),
                    urllib.request.HTTPErrorProcessor(),
                    urllib.request.HTTPDefaultErrorHandler(),
                    urllib.request.UnknownHandler()):
        opener.add_handler(handler)
    return opener


# ---------------------------------------------------------------- one mirror

# What the network may raise: OSError when the connection fails, HTTPException
# when the answer is not HTTP, ValueError when a redirect's address is malformed.
NETWORK_ERRORS = (OSError, http.client.HTTPException, ValueError)


def failure(error, timeout):
    """Puts an error of the network into words.

    Args:
        error: one of NETWORK_ERRORS.
        timeout: float, the seconds that were allowed.

    Returns:
        Unreachable when no answer came, otherwise DownloadError; its text is short.
    """
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        # The standard phrase of the code: the server's own may hold anything.
        phrase = http.client.responses.get(error.code, "unknown code")
        return DownloadError(f"HTTP {error.code} ({phrase})")
    if isinstance(error, urllib.error.URLError):
        error = error.reason
    if isinstance(error, ssl.SSLError):
        why = getattr(error, "verify_message", error)  # only errors of the certificate have it
        return DownloadError(printable(f"no trusted connection: {why}"))
    for kind, why in ((TimeoutError, f"time-out after {timeout:g} s"),
                      (ConnectionRefusedError, "connection refused"),
                      (socket.gaierror, "host name not found"),
                      (ConnectionError, "connection closed without an answer"),
                      (OSError, printable(error))):
        if isinstance(error, kind):
            return Unreachable(why)
    return DownloadError(printable(error))


def printable(text):
    """Returns `text` as a str of one line that cannot steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))[:LONGEST_TEXT]


def open_address(opener, address, timeout):
    """Opens an https address; raises Unreachable or DownloadError with the reason."""
    try:
        return opener.open(address, timeout=timeout)
    except NETWORK_ERRORS as error:
        raise failure(error, timeout) from error


def read_chunks(response, size, timeout):
    """Yields the bytes of an answer, at most `size` + 1 of them.

    The one byte more tells an answer that is too long from one of the right
    length; an endless one ends there.

    Raises:
        DownloadError: the connection failed on the way.
    """
    received = 0
    while received <= size:
        try:
            # read1 hands over what has come, so the progress bar moves on a slow line too.
            chunk = response.read1(min(CHUNK, size + 1 - received))
        except NETWORK_ERRORS as error:
            raise DownloadError(f"{failure(error, timeout)}, "
                                f"expected {size:,} bytes, received {received:,}") from error
        if not chunk:
            return
        received += len(chunk)
        yield chunk


def fetch(address, part, size, sha256, timeout, opener, progress):
    """Writes what one mirror serves to the new file `part`, and checks it.

    Args:
        address: str, an https address.
        part: pathlib.Path of a file that does not exist.
        size: int, expected bytes.
        sha256: str, expected SHA-256, 64 hex digits in lower case.
        timeout: float, longest silence in seconds.
        opener: `urllib.request.OpenerDirector`.
        progress: object with `update(number_of_bytes)`, such as a tqdm bar.

    Raises:
        DownloadError: the bytes are not the expected ones; Unreachable if none came.
        OSError: `part` cannot be written.
    """
    received, head, digest = 0, b"", hashlib.sha256()
    # "x": never into a file, or through a link, that someone else has put there.
    with open_address(opener, address, timeout) as response, open(part, "xb") as file:
        for chunk in read_chunks(response, size, timeout):
            file.write(chunk)
            digest.update(chunk)
            head = (head + chunk)[:HEAD]
            received += len(chunk)
            progress.update(len(chunk))
    if received > size:
        raise DownloadError(f"expected {size:,} bytes, received more ({kind_of_file(head)})")
    if received < size:
        raise DownloadError(f"expected {size:,} bytes, received {received:,} ({kind_of_file(head)})")
    if digest.hexdigest() != sha256:
        raise DownloadError(f"SHA-256: expected {sha256}, received {digest.hexdigest()} ({kind_of_file(head)})")


# ---------------------------------------------------------------- one file


def already_there(path, size, sha256):
    """Says whether the expected file is at `path`.

    Returns:
        True if it is, False if nothing is there.

    Raises:
        DownloadError: another file has that name.
        OSError: what has that name cannot be read.
    """
    if not path.exists():
        return False
    found, head, digest = 0, b"", hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            head = (head + chunk)[:HEAD]
            found += len(chunk)
    if (found, digest.hexdigest()) == (size, sha256):
        return True
    raise DownloadError(
        f"{path.name}: another file has that name already, and it is not overwritten. "
        f"Expected {size:,} bytes with SHA-256 {sha256}. Move {path} away or delete it, then run this again. "
        f"Received: {found:,} bytes with SHA-256 {digest.hexdigest()} ({kind_of_file(head)}).")


def download_file(name, addresses, size, sha256, folder, timeout=TIMEOUT, opener=None):
    """Fetches one file from the first mirror that serves the expected bytes.

    Nothing is fetched when the file is there already. Each mirror that fails
    gets a line on stderr, with its address and the reason.

    Args:
        name: str, the file's name, which ends with .h5.
        addresses: list of str, the https addresses of its mirrors, tried in order.
        size: int, expected bytes.
        sha256: str, expected SHA-256, 64 hex digits in lower case.
        folder: path of the folder to put it in, made if it is missing.
        timeout: float, seconds of silence after which a mirror is given up.
        opener: `urllib.request.OpenerDirector`, by default `https_opener()`.

    Returns:
        pathlib.Path of the file.

    Raises:
        ValueError: `name` is not a plain file name, or an address is not https.
        DownloadError: another file has that name, or no mirror gave the expected
            bytes; Unreachable when no mirror answered.
        OSError: the folder cannot be written.
    """
    if not re.fullmatch(FILE_NAME, name):
        raise ValueError(f"The name must be a plain file name that ends with .h5, without a folder. "
                         f"Received: {name!r}")
    for address in addresses:
        check_https(address)
    path = Path(folder) / name
    if already_there(path, size, sha256):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = opener or https_opener()
    failures = []
    for address in addresses:
        try:
            return fetch_aside(address, path, size, sha256, timeout, opener)
        except DownloadError as error:
            print(f"  {address}: {error}", file=sys.stderr, flush=True)
            failures.append(error)
    nobody = all(isinstance(error, Unreachable) for error in failures)
    raise (Unreachable if nobody else DownloadError)(
        f"{name}: no mirror gave the expected {size:,} bytes with SHA-256 {sha256}. "
        f"Try again later, or put the file into {path.parent} by hand. "
        f"Received: {'; '.join(map(str, failures)) or 'no address'}.")


def fetch_aside(address, path, size, sha256, timeout, opener):
    """Fetches to a file beside `path`, and renames it when it is the expected one.

    Whatever happens, Ctrl-C included, no other file than `path` is left behind.
    Arguments and errors are those of `fetch`; returns `path`.
    """
    # Named before it is made: an interruption at any moment finds the name to remove.
    # (tempfile.mkstemp makes the file first, and for its owner's eyes alone, which data need not be.)
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        # disable=None: a bar on a terminal, none in a log file.
        with tqdm(total=size, desc=path.name, unit="B", unit_scale=True,
                  leave=False, disable=None) as progress:
            fetch(address, part, size, sha256, timeout, opener, progress)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


# ---------------------------------------------------------------- the command


def download_files(names, sources, folder, timeout, opener):
    """Fetches several files, and prints what became of each.

    After a file of which no mirror answered, the others are not tried: their
    mirrors are on the same host, and each would cost its time-out again.

    Args:
        names: list of str, names of files.
        sources: dict from `read_sources`.
        folder: pathlib.Path of the folder to put them in.
        timeout: float, seconds of silence after which a mirror is given up.
        opener: `urllib.request.OpenerDirector`.

    Returns:
        True if all the files are there, else False.
    """
    there, offline = 0, False
    for name in names:
        source = sources[name]
        try:
            if already_there(folder / name, source["size"], source["sha256"]):
                print(f"{name}: already there, SHA-256 as expected.", flush=True)
            elif offline:
                continue
            else:
                print(f"{name}: fetching {source['size']:,} bytes ...", flush=True)
                download_file(name, folder=folder, timeout=timeout, opener=opener, **source)
                print(f"{name}: there, SHA-256 as expected.", flush=True)
            there += 1
        except Unreachable:
            offline = True  # the lines of its mirrors and the text below say it all
        except DownloadError as error:
            print(error, file=sys.stderr, flush=True)
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        print(help_text(missing, sources, folder, offline), file=sys.stderr)
        print(f"Received: {there} of {len(names)} files.", file=sys.stderr, flush=True)
    return there == len(names)


def help_text(missing, sources, folder, offline):
    """Says what to do without the files.

    Args:
        missing: list of str, names of the files that could not be had.
        sources: dict from `read_sources`.
        folder: pathlib.Path, where they belong.
        offline: bool, whether no mirror answered.

    Returns:
        str of several lines.
    """
    width = max(map(len, missing))
    lines = ["", "The scripts run without the files too, on the SYNTHETIC set.",
             "For the photographs, try again later, or fetch them on another machine and put them into",
             f"  {folder}",
             "under these names:"]
    if offline:
        lines.insert(1, "No mirror answered: this machine seems to be offline, or behind a firewall.")
    lines += [f"  {name:{width}}  {sources[name]['addresses'][0]}" for name in missing]
    lines += [f"More mirrors are in {SOURCES}. Then run the same command again: it checks the files."]
    return "\n".join(lines)


def seconds(text):
    """Reads the option --timeout: a float, > 0 and at most LONGEST_TIMEOUT seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= LONGEST_TIMEOUT:
        raise argparse.ArgumentTypeError(
            f"expected seconds, more than 0 and at most {LONGEST_TIMEOUT}. Received: {text}")
    return value


def parse_arguments(argv=None):
    """Reads the command line, by default sys.argv; returns an `argparse.Namespace`."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.download",
        description="Fetches the HDF5 files of the Happy House and SIGNS sets, and checks their SHA-256.")
    parser.add_argument("set", nargs="?", choices=sorted(SETS), help="the set to fetch (default: both)")
    parser.add_argument("--data-dir", metavar="DIR", type=Path, default=FOLDER,
                        help="folder to put the files into (default: %(default)s)")
    parser.add_argument("--timeout", metavar="SECONDS", type=seconds, default=TIMEOUT,
                        help="silence after which a mirror is given up (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the command; returns its exit status, see the top of this file."""
    arguments = parse_arguments(argv)
    folder = arguments.data_dir.resolve()
    sets = [arguments.set] if arguments.set else list(SETS)
    names = [name for chosen in sets for name in SETS[chosen]]
    sources, opener = read_sources(SOURCES), https_opener()
    try:
        complete = download_files(names, sources, folder, arguments.timeout, opener)
    except KeyboardInterrupt:
        print(f"Interrupted: no unfinished file is left in {folder}.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"The files could not be read or written: choose, with --data-dir, a folder that you may "
              f"write to, on a disk with room for 24 MB. Received: {error}", file=sys.stderr)
        return 1
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
