"""Makes a network namespace that reaches public addresses only, then becomes the command that makes a sandbox in it.

``python box_network.py PASTA USER WORD...``: USER is the uid and gid of the sandbox where the node is root, else -1.

A *holder* process has the namespace, and a user namespace that owns it.  pasta carries what is sent there through
sockets of this machine: TCP and UDP outwards, nothing inwards, IPv4 only, never to this machine's loopback.  Whether a
destination may be reached is decided inside by routes, before pasta sees a packet: private, special and this machine's
own addresses are prohibited.  Nobody in the sandbox has the right to change a route.  Names are asked of the machine's
name server, under NAME_SERVER.  Holder and pasta die with the process that this one becomes.

A file of its own, run as a script: imports only the standard library.

Source: pasta(1); rtnetlink(7); user_namespaces(7); the IANA registry of special-purpose IPv4 addresses (RFC 6890).
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import signal
import socket
import struct
import sys
import time

ADDRESS, GATEWAY, PREFIX_BITS, NAME_SERVER = "192.0.2.2", "192.0.2.1", "24", "192.0.2.3"
"""Of documentation: nobody has them."""
FORBIDDEN = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.88.99.0/24"),
    *("192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
)
"""Private, shared, link-local with the addresses of clouds' metadata, special, multicast, reserved."""
_WAIT_S = 10.0
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_RTM_NEWROUTE, _RTN_PROHIBIT, _RTA_DST, _RT_TABLE_MAIN, _RTPROT_STATIC = 24, 8, 1, 254, 4
_NLM_REQUEST_ACK_CREATE = 0x1 | 0x4 | 0x400


class Broken(Exception):
    """The network cannot be made; the text says which step failed."""


_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise Broken(f"{what}: {os.strerror(ctypes.get_errno())}")


def _step_down(user: int) -> None:
    """In a new process: become the user, die with the parent, keep none of its descriptors but the standard ones."""
    if user >= 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def hold(user: int) -> int:
    """Start the process that has the namespaces; return its pid.

    Raises:
        Broken: they cannot be made.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(writer, 3)
            os.closerange(4, 1 << 16)
            _step_down(user)
            _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET), "a user and network namespace")
            _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # or pasta, of the same user, may not look at it
            os.write(3, b"+")
            os.close(3)
            while True:
                signal.pause()
        except (OSError, Broken) as error:
            os.write(2, f"{error}\n".encode())
        finally:
            os._exit(1)
    os.close(writer)
    if os.read(reader, 1) != b"+":
        raise Broken("no network namespace can be made here")
    os.close(reader)
    number = os.getuid() if user < 0 else user
    group = os.getgid() if user < 0 else user
    for name, text in (("setgroups", "deny"), ("uid_map", f"{number} {number} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(text)
    return pid


def connect(pasta: str, holder: int, user: int) -> None:
    """Start pasta and wait until the namespace has a route.

    Raises:
        Broken: it does not come up.
    """
    words = [pasta, "-f", "-q", "-4", "--config-net", "--no-map-gw", "-t", "none", "-u", "none", "-T", "none"]
    words += ["-U", "none", "-a", ADDRESS, "-n", PREFIX_BITS, "-g", GATEWAY, "--dns-forward", NAME_SERVER, str(holder)]
    pid = os.fork()
    if pid == 0:
        try:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(2, 1)
            os.closerange(3, 1 << 16)
            _step_down(user)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and pasta takes that for an error
            os.execv(pasta, words)
        except (OSError, Broken) as error:
            os.write(2, f"{error}\n".encode())
        finally:
            os._exit(1)
    deadline = time.monotonic() + _WAIT_S
    while not _has_route(holder):
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise Broken("pasta has ended; its words are above")
        if time.monotonic() > deadline:
            raise Broken(f"pasta has not connected the sandbox within {_WAIT_S:g} s")
        time.sleep(0.005)


def _has_route(pid: int) -> bool:
    with open(f"/proc/{pid}/net/route") as file:
        return any(line.split()[1:2] == ["00000000"] for line in file)


def own_addresses() -> list[str]:
    """Return the IPv4 addresses of this machine, as this process sees it."""
    found, last = [], ""
    with open("/proc/net/fib_trie") as file:
        for line in file:
            words = line.split()
            if words[:1] in (["|--"], ["+--"]):
                last = words[1]
            elif words[:3] == ["/32", "host", "LOCAL"]:
                found.append(f"{last}/32")
    return list(dict.fromkeys(found))


def enter(holder: int, user: int) -> None:
    """Move this process into the namespace.

    Raises:
        Broken, OSError: it may not.
    """
    kinds = ("net",) if user >= 0 else ("user", "net")  # root stays root, for the sandbox that it makes
    descriptors = [os.open(f"/proc/{holder}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds]
    for descriptor, kind in zip(descriptors, kinds, strict=True):
        _check(_libc.setns(descriptor, 0), f"entering the {kind} namespace")
        os.close(descriptor)


def prohibit(prefixes: list[str]) -> None:
    """Let nothing in this network namespace reach these.

    Raises:
        Broken, OSError: the kernel does not take a route.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        for number, text in enumerate(prefixes):
            prefix = ipaddress.IPv4Network(text)
            body = struct.pack(
                "=BBBBBBBBI",
                socket.AF_INET,
                prefix.prefixlen,
                0,
                0,
                _RT_TABLE_MAIN,
                _RTPROT_STATIC,
                0,
                _RTN_PROHIBIT,
                0,
            )
            body += struct.pack("=HH", 8, _RTA_DST) + prefix.network_address.packed
            netlink.send(
                struct.pack("=IHHII", 16 + len(body), _RTM_NEWROUTE, _NLM_REQUEST_ACK_CREATE, number, 0) + body
            )
            answer = netlink.recv(4096)
            error = struct.unpack_from("=i", answer, 16)[0]
            if error:
                raise Broken(f"a route for {text}: {os.strerror(-error)}")


def main() -> None:
    """Make the network, then become the rest of the words."""
    pasta, user, words = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    try:
        forbidden = [*FORBIDDEN, *(address for address in own_addresses() if not address.startswith("127."))]
        holder = hold(user)
        connect(pasta, holder, user)
        enter(holder, user)
        prohibit(list(dict.fromkeys(forbidden)))
        os.execv(words[0], words)
    except (Broken, OSError) as error:
        os.write(2, f"the network of the sandbox cannot be made: {error}\n".encode())
        os._exit(1)


if __name__ == "__main__":
    main()
