"""Ways to break a safetensors file, each with the words that a reader's message must contain.

This file owns the damage, for the tests of every reader of the format. It opens no reader itself. Invariant: every
entry of BREAKAGES turns the bytes of a valid file with at least two non-empty tensors into an invalid file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Header = dict[str, Any]
Breakage = Callable[[bytes], bytes]


def split(data: bytes) -> tuple[Header, bytes]:
    """Return the parsed header and the data part of a valid file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def join(header: Header | str, payload: bytes) -> bytes:
    """Build a file out of a header (an object, or its text as it shall stand) and a data part."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + payload


def first_name(header: Header) -> str:
    """Return the tensor that lies first in the data part."""
    return tensor_names(header)[0]


def tensor_names(header: Header) -> list[str]:
    """Return the non-empty tensors in the order of the data part."""
    entries = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return sorted((name for name, (start, stop) in entries.items() if stop > start), key=lambda name: entries[name])


def edited(change: Callable[[Header, str], None]) -> Breakage:
    """Make a breakage out of a function that changes the parsed header, given its first tensor's name."""

    def apply(data: bytes) -> bytes:
        header, payload = split(data)
        change(header, first_name(header))
        return join(header, payload)

    return apply


def entry_set(key: str, value: object) -> Breakage:
    """Make a breakage that sets one field of the first tensor's entry."""

    def change(header: Header, name: str) -> None:
        header[name][key] = value

    return edited(change)


def entry_shifted(start: int, stop: int) -> Breakage:
    """Make a breakage that moves the bounds of the first tensor."""

    def change(header: Header, name: str) -> None:
        old_start, old_stop = header[name]["data_offsets"]
        header[name]["data_offsets"] = [old_start + start, old_stop + stop]

    return edited(change)


def _swapped_dtype(header: Header, name: str) -> None:
    header[name]["dtype"] = "F64" if header[name]["dtype"] != "F64" else "F32"


def _overlapping(header: Header, name: str) -> None:
    """Move the last tensor back by one of its own lengths, onto the one before."""
    last = tensor_names(header)[-1]
    start, stop = header[last]["data_offsets"]
    header[last]["data_offsets"] = [start - 1, stop - 1]


def _spare_field(header: Header, name: str) -> None:
    header[name]["strides"] = [1, 1]


def _missing_field(header: Header, name: str) -> None:
    del header[name]["shape"]


def _renamed_metadata(value: object) -> Breakage:
    def change(header: Header, name: str) -> None:
        header["__metadata__"] = value

    return edited(change)


def _duplicate_name(data: bytes) -> bytes:
    header, payload = split(data)
    name = first_name(header)
    text = json.dumps(header)
    return join("{" + f"{json.dumps(name)}: {json.dumps(header[name])}, " + text[1:], payload)


def _with_length(length: int) -> Breakage:
    return lambda data: length.to_bytes(8, "little") + data[8:]


def _header_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


# Name -> (breakage, words of the message).
BREAKAGES: Mapping[str, tuple[Breakage, str]] = {
    "empty": (lambda data: b"", "0 bytes"),
    "cut in the header length": (lambda data: data[:5], "5 bytes"),
    "cut behind the header length": (lambda data: data[:8], "the header ends at byte"),
    "cut in the header": (lambda data: data[: _header_end(data) // 2], "the header ends at byte"),
    "cut behind the header": (lambda data: data[: _header_end(data)], "it is cut"),
    "cut in the first tensor": (lambda data: data[: _header_end(data) + 3], "it is cut"),
    "cut by the last byte": (lambda data: data[:-1], "it is cut"),
    "one byte too many": (lambda data: data + b"\0", "belongs to no tensor"),
    "one byte missing inside": (lambda data: data[:-9] + data[-8:], "it is cut"),
    "header length zero": (_with_length(0), "claims a header of 0 bytes"),
    "header length one": (_with_length(1), "claims a header of 1 bytes"),
    "header length beyond the limit": (_with_length(100_000_001), "claims a header of 100,000,001 bytes"),
    "header length beyond 63 bits": (_with_length(2**64 - 1), "claims a header of 18,446,744,073,709,551,615 bytes"),
    "header length beyond the file": (lambda data: _with_length(len(data))(data), "the header ends at byte"),
    "header not JSON": (lambda data: join("{]" + " " * 20, split(data)[1]), "the header is not JSON"),
    "header not UTF-8": (lambda data: data[:9] + b"\xff\xfe" + data[11:], "the header is not JSON"),
    "header a list": (lambda data: join("[]", split(data)[1]), "does not begin with '{'"),
    "header led by spaces": (
        lambda data: join("  " + json.dumps(split(data)[0]), split(data)[1]),
        "does not begin with",
    ),
    "header nested too deep": (lambda data: join('{"a":' * 100_000, b""), "the header is not JSON"),
    "header followed by more": (lambda data: join(json.dumps(split(data)[0]) + "{}", split(data)[1]), "is not JSON"),
    "pickle": (lambda data: b"\x80\x04\x95" + data, "claims a header"),
    "zeros": (lambda data: bytes(len(data)), "claims a header of 0 bytes"),
    "duplicate name": (_duplicate_name, "stands twice"),
    "entry not an object": (edited(lambda header, name: header.update({name: 3})), "must have exactly dtype"),
    "entry with a spare field": (edited(_spare_field), "must have exactly dtype"),
    "entry without shape": (edited(_missing_field), "must have exactly dtype"),
    "metadata not an object": (_renamed_metadata([]), "__metadata__"),
    "metadata of numbers": (_renamed_metadata({"a": 1}), "__metadata__"),
    "unknown dtype": (entry_set("dtype", "F128"), "unknown dtype F128"),
    "dtype not a string": (entry_set("dtype", 4), "unknown dtype 4"),
    "dtype of another size": (edited(_swapped_dtype), "data_offsets give"),
    "shape not a list": (entry_set("shape", 12), "not valid counts"),
    "shape negative": (entry_set("shape", [-1, -12]), "not valid counts"),
    "shape fractional": (entry_set("shape", [1.5, 2]), "not valid counts"),
    "shape of booleans": (entry_set("shape", [True]), "not valid counts"),
    "shape too large": (entry_set("shape", [1 << 62, 1 << 62]), "data_offsets give"),
    "shape huge": (entry_set("shape", [10**4000]), "not valid counts"),
    "shape of too many axes": (entry_set("shape", [1] * 1000), "not valid counts"),
    "offsets negative": (entry_shifted(-4, -4), "not valid counts"),
    "offsets reversed": (entry_set("data_offsets", [8, 0]), "not valid counts"),
    "offsets of one number": (entry_set("data_offsets", [0]), "not valid counts"),
    "offsets huge": (entry_shifted(1 << 62, 1 << 62), "leaves a hole"),
    "offsets beyond 64 bits": (entry_shifted(1 << 70, 1 << 70), "not valid counts"),
    "offsets with a hole": (entry_shifted(4, 4), "leaves a hole"),
    "offsets too long": (entry_shifted(0, 4), "data_offsets give"),
    "offsets overlapping": (edited(_overlapping), "overlaps"),
    "tensor without an entry": (edited(lambda header, name: header.__delitem__(name)), "leaves a hole"),
}
