"""`pip install`, held to requirements/lock.txt: `make install` installs everything by it.

Where the package index lacks a version that the lock names, pip speaks of a conflict among packages; here the error
names the package, the version and the way out. It needs only pip and the standard library, and indexes are chosen
by pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL).
"""

import re
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).with_name("lock.txt")
LACKING = re.compile(r"no matching distributions available for your environment:\n((?: +\S+\n)+)")
NOT_FOUND = re.compile(r"No matching distribution found for ([\w.-]+)")


def pip(*arguments: str) -> tuple[int, str]:
    """Exit status and all that `pip install` said."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


def lacking(said: str, lock: str) -> list[str]:
    """The pins of the lock that the index hasn't, among those that pip says it found nothing for.

    It says so as well of a version that is there and is outside of what something else asks for.
    """
    names = [name for found in LACKING.findall(said) for name in found.split()] + NOT_FOUND.findall(said)
    plain = {re.sub(r"[-_.]+", "-", name).lower() for name in names}
    pins = [line for line in lock.splitlines() if line.partition("==")[0] in plain]
    return [pin for pin in pins if NOT_FOUND.search(pip("--dry-run", "--no-deps", "--ignore-installed", pin)[1])]


def main(arguments: list[str]) -> int:
    status, said = pip("-c", str(LOCK), *arguments)
    if status == 0:
        return 0
    pins = lacking(said, LOCK.read_text(encoding="utf-8"))
    if not pins:
        sys.stderr.write(said)
        return status
    for pin in pins:
        sys.stderr.write(
            f"{LOCK.name}: the package index has no {pin} (withdrawn, or not for this Python or machine)\n"
        )
    sys.stderr.write("Use an index that has it (PIP_INDEX_URL), or make the lock anew where one works (make lock).\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
