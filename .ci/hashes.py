"""Print the pins of a pip report with the sha256 of each file: pip install --dry-run --report FILE, on standard input.

A build of one index alone (a local version such as 2.13.0+cpu) and a file without a hash have no line.
"""

import json
import sys


def lines(report: dict) -> list[str]:
    """One requirement a package, in the order of constraints.txt."""
    found = []
    for entry in report["install"]:
        name, version = entry["metadata"]["name"], entry["metadata"]["version"]
        digest = entry["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest and "+" not in version:
            found.append(f"{name}=={version} --hash=sha256:{digest}")
    return sorted(found, key=str.lower)


if __name__ == "__main__":
    heading = "# Files that pip takes on CPython 3.11, Linux x86-64; made by `make lock`."
    sys.stdout.write("\n".join([heading, *lines(json.load(sys.stdin))]) + "\n")
