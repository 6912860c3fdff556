"""What a program file is for, by its first bytes.

Imported by worker processes: imports next to nothing.

Source: elf(5), e_machine, EI_CLASS, PT_INTERP.
"""

from __future__ import annotations

import os
import sys

HEAD_BYTES = 4096
"""With the program headers of what linkers make, and the name of the loader behind them."""
_ELF_BYTES = 20
_MACHINES = {
    (3, 1): "i386",
    (8, 1): "mips",
    (8, 2): "mips64",
    (20, 1): "ppc",
    (21, 2): "ppc64",
    (22, 2): "s390x",
    (40, 1): "arm",
    (62, 1): "x32",
    (62, 2): "x86_64",
    (183, 2): "aarch64",
    (243, 1): "riscv32",
    (243, 2): "riscv64",
    (258, 2): "loongarch64",
}
"""(e_machine, EI_CLASS) → what systems call it."""
_LITTLE_ONES = {"ppc64": "ppc64le", "mips": "mipsel", "mips64": "mips64el"}
_NAMES = {"amd64": "x86_64", "arm64": "aarch64", **dict.fromkeys(("i486", "i586", "i686"), "i386")}
_MACH_O = (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
_ENTRIES_MAX = 64
"""Program headers looked at; linkers make about a dozen."""


def machine_name(said: str) -> str:
    """Return how `made_for` calls a machine of which the system says this (`uname -m`)."""
    name = said.lower()
    return "arm" if name.startswith("armv") and not name.startswith("armv8") else _NAMES.get(name, name)


def this_machine() -> str:
    """Return what programs this machine takes, like "linux x86_64"."""
    return f"{sys.platform} {machine_name(os.uname().machine)}"


def made_for(head: bytes) -> str:
    """Return the machine or system that a program is for, like "aarch64"; empty when that cannot be told."""
    if head.startswith(b"\x7fELF") and len(head) >= _ELF_BYTES:
        is_big = head[5] == 2
        name = _MACHINES.get((int.from_bytes(head[18:20], "big" if is_big else "little"), head[4]), "another machine")
        return name if is_big else _LITTLE_ONES.get(name, name)
    if head.startswith(_MACH_O):
        return "macOS"
    return "Windows" if head.startswith(b"MZ") else ""


def loader_of(head: bytes) -> str:
    """Return the loader that an ELF program of 64 bits, low byte first, asks for, like "/lib64/ld-linux-x86-64.so.2";
    empty when it needs none or that cannot be told from so many bytes."""
    if not head.startswith(b"\x7fELF\x02\x01") or len(head) < 64:
        return ""
    start, size, count = (int.from_bytes(head[at : at + n], "little") for at, n in ((32, 8), (54, 2), (56, 2)))
    for number in range(min(count, _ENTRIES_MAX)):
        entry = head[start + number * size : start + number * size + 56]
        if len(entry) == 56 and int.from_bytes(entry[:4], "little") == 3:
            at, length = int.from_bytes(entry[8:16], "little"), int.from_bytes(entry[32:40], "little")
            return head[at : at + length].rstrip(b"\0").decode("utf-8", "replace") if at + length <= len(head) else ""
    return ""
