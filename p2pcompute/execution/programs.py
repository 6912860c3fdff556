"""What a program file is for, by its first bytes.

Imported by worker processes: imports nothing.

Source: elf(5), e_machine.
"""

from __future__ import annotations

HEAD_BYTES = 20
_MACHINES = {3: "i386", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_MACH_O = (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")


def made_for(head: bytes) -> str:
    """Return the machine or system that a program is for, like "aarch64"; empty when that cannot be told."""
    if head.startswith(b"\x7fELF") and len(head) >= HEAD_BYTES:
        return _MACHINES.get(int.from_bytes(head[18:20], "big" if head[5] == 2 else "little"), "another machine")
    if head.startswith(_MACH_O):
        return "macOS"
    return "Windows" if head.startswith(b"MZ") else ""
