"""Makes text from any source safe to print, and prints it."""

import json
import re
import sys
from contextlib import suppress
from typing import Any, TextIO

# Terminated control strings (OSC, DCS, SOS, PM, APC), CSI sequences, and shorter escapes. Of a control string without
# a terminator only the introducer is removed: the text after it may be a message.
_SEQUENCES = (
    "(?:\x1b[P\\]X^_]|[\x90\x98\x9d-\x9f])[^\x00-\x1f\x7f-\x9f]*(?:\x07|\x1b\\\\|\x9c)"
    "|(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"
    "|\x1b(?:[ -/]+[0-~]|[78=>c])"
)
# C0 except tab and line feed, DEL and C1, and the characters that change the writing direction (Boucher and Anderson,
# "Trojan Source", 2021).
_CONTROLS = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
_STRIPPED = re.compile(f"{_SEQUENCES}|{_CONTROLS}")
_CONTROL = re.compile(f"{_CONTROLS}|[\ud800-\udfff]")
FORMULA = ("=", "+", "-", "@", "\t", "\n")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """The text without anything that a terminal, a page or a store would interpret instead of showing it.

    Removes control characters other than tab and line feed, escape sequences with their contents, and characters that
    change the writing direction. A lone surrogate, which cannot be encoded, becomes U+FFFD.
    """
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", _STRIPPED.sub("", text))


def printable_parts(value: Any) -> Any:
    """A JSON value whose strings, keys included, are `printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_parts(key): printable_parts(part) for key, part in value.items()}
    return [printable_parts(part) for part in value] if isinstance(value, list | tuple) else value


def spreadsheet_cell(text: str) -> str:
    """A `printable` text that no spreadsheet runs: an apostrophe precedes a would-be formula (OWASP).

    Numbers stay as they are.
    """
    text = printable(text)
    return f"'{text}" if text.startswith(FORMULA) and not _NUMBER.fullmatch(text) else text


def json_text(value: Any) -> str:
    """A value as JSON with escaped control characters: safe to show, and a program reads the same value."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _CONTROL.sub(lambda found: "\n" if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def print_line(text: str, stream: TextIO | None = None) -> None:
    """Print a text and a line end; by default to standard output.

    Raises:
        OSError: when the stream cannot be written.
    """
    _print(printable(text), stream or sys.stdout)


def print_json(value: Any) -> None:
    """Print a value as JSON to standard output.

    Raises:
        OSError: when the stream cannot be written.
    """
    _print(json_text(value), sys.stdout)


def warn(text: str) -> None:
    """Print a text to standard error. A failure raises nothing, since there is no other stream to report it on."""
    with suppress(OSError, ValueError):
        print_line(text, sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
