"""Makes a network namespace that reaches public addresses only, then becomes the command that makes a sandbox in it.

``python box_network.py PASTA USER WORD...``: USER is the uid and gid of the sandbox where the node is root, else -1.

There are two namespaces.  A *holder* process has the first, the router's, and a user namespace that owns it.  pasta
carries what is sent there through sockets of this machine: TCP and UDP outwards, nothing inwards, never to this
machine's loopback; IPv4 and IPv6, as far as the machine has them.  The sandbox has the second, and a link to the first,
which forwards what its routes let through: private, special and this machine's own addresses are prohibited, and of
IPv6 also its local networks.  In the namespace that has the routes there is nobody to get around them: a socket can be
told to leave by an interface whatever its routes say, without any right.  Names are asked of the machine's name server,
under NAME_SERVERS.  Holder and pasta die with the process that this one becomes.

A file of its own, run as a script: imports only the standard library.

Source: pasta(1); rtnetlink(7); user_namespaces(7); ip_route_output_key_hash_rcu() in Linux' net/ipv4/route.c, which
takes a socket's interface for a route; the IANA registries of special-purpose addresses (RFC 6890).
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import signal
import socket
import struct
import sys
import time

GATEWAYS, ADDRESSES, NAME_SERVERS = (
    ("192.0.2.1", "2001:db8::1"),
    ("192.0.2.2", "2001:db8::2"),
    ("192.0.2.3", "2001:db8::3"),
)
"""Of documentation: nobody has them.  The router's, between it and pasta; IPv4 and IPv6."""
ROUTER_LINKS, TASK_LINKS = ("192.0.2.129/30", "2001:db8:0:1::1/64"), ("192.0.2.130/30", "2001:db8:0:1::2/64")
"""The same between it and the sandbox."""
FORBIDDEN = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24"),
    *("192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4"),
    *("240.0.0.0/4", "::/3", "4000::/2", "8000::/1", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
)
"""Private, shared, link-local with the addresses of clouds' metadata, special, multicast, reserved; of IPv6 all that is
not global, and what holds addresses of another kind (mapped, 6to4, Teredo, NAT64)."""
_WAIT_S = 10.0
_WAIT_SECOND_S = 1.0
"""For IPv6, when IPv4 is there."""
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_RTM_NEWLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 20, 24
_RTN_UNICAST, _RTN_PROHIBIT, _RTA_DST, _RTA_GATEWAY, _RT_TABLE_MAIN, _RTPROT_STATIC = 1, 8, 1, 5, 254, 4
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_NET_NS_PID, _INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 3, 18, 19, 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD, _IFF_UP = 1, 2, 0x02, 1
_NLM_REQUEST_ACK_CREATE = 0x1 | 0x4 | 0x400
_RTF_GATEWAY, _RTF_REJECT = 0x2, 0x200
LINK = "task0"


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
            for name in ("accept_dad", "accept_ra"):  # no second until an address may be used, no routes from outside
                with contextlib.suppress(OSError):  # a kernel without IPv6
                    _set(f"ipv6/conf/default/{name}", "0")
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


def families(of: str = "self") -> tuple[bool, bool]:
    """Return whether a process's network namespace has a way out by IPv4, and by IPv6."""
    with open(f"/proc/{of}/net/route") as file:
        has_4 = any(line.split()[1:2] == ["00000000"] for line in file)
    return has_4, any(size == 0 and not flags & _RTF_REJECT for _net, size, flags, _device in _routes_6(of))


def _routes_6(of: str = "self") -> list[tuple[int, int, int, str]]:
    """Return (prefix, its bits, flags, device) of the IPv6 routes of a process's network namespace."""
    try:
        with open(f"/proc/{of}/net/ipv6_route") as file:
            rows = [line.split() for line in file]
    except FileNotFoundError:
        return []  # a kernel without IPv6
    return [(int(row[0], 16), int(row[1], 16), int(row[8], 16), row[9]) for row in rows]


def connect(pasta: str, holder: int, user: int) -> None:
    """Start pasta and wait until the namespace has a way out.

    Raises:
        Broken: it does not come up.
    """
    has_4, has_6 = families()
    words = [pasta, "-f", "-q", "--config-net", "--no-map-gw", "-t", "none", "-u", "none", "-T", "none", "-U", "none"]
    if has_4 or not has_6:
        words += ["-n", "26", "-a", ADDRESSES[0], "-g", GATEWAYS[0], "--dns-forward", NAME_SERVERS[0]]
    if has_6:
        words += ["-a", ADDRESSES[1], "-g", GATEWAYS[1], "--dns-forward", NAME_SERVERS[1]]
    if has_4 != has_6 or not has_4:
        words.append("-6" if has_6 else "-4")
    words.append(str(holder))
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
    while not any(families(str(holder))):
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise Broken("pasta has ended; its words are above")
        if time.monotonic() > deadline:
            raise Broken(f"pasta has not connected the sandbox within {_WAIT_S:g} s")
        time.sleep(0.005)
    deadline = time.monotonic() + _WAIT_SECOND_S
    while families(str(holder)) != (has_4, has_6) and time.monotonic() < deadline:
        time.sleep(0.005)


def own_addresses() -> list[str]:
    """Return the addresses of this machine, as this process sees it, and its local IPv6 networks."""
    found, last = [], ""
    with open("/proc/net/fib_trie") as file:
        for line in file:
            words = line.split()
            if words[:1] in (["|--"], ["+--"]):
                last = words[1]
            elif words[:3] == ["/32", "host", "LOCAL"]:
                found.append(f"{last}/32")
    for prefix, size, flags, _device in _routes_6():
        if size and not flags & (_RTF_GATEWAY | _RTF_REJECT):  # to an address of its own, or to neighbours
            found.append(f"{ipaddress.IPv6Address(prefix)}/{size}")
    return list(dict.fromkeys(found))


def enter(holder: int, user: int) -> None:
    """Move this process into the router's namespace.

    Raises:
        Broken, OSError: it may not.
    """
    kinds = ("net",) if user >= 0 else ("user", "net")  # root stays root, for the sandbox that it makes
    descriptors = [os.open(f"/proc/{holder}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds]
    for descriptor, kind in zip(descriptors, kinds, strict=True):
        _check(_libc.setns(descriptor, 0), f"entering the {kind} namespace")
        os.close(descriptor)


class _Netlink:
    """Changes the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._serial = 0

    def close(self) -> None:
        self._socket.close()

    def _ask(self, kind: int, body: bytes, what: str) -> None:
        self._serial += 1
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, _NLM_REQUEST_ACK_CREATE, self._serial, 0) + body)
        error = struct.unpack_from("=i", self._socket.recv(4096), 16)[0]
        if error:
            raise Broken(f"{what}: {os.strerror(-error)}")

    def prohibit(self, text: str) -> None:
        """Let nothing reach a prefix."""
        prefix = ipaddress.ip_network(text)
        self._ask(
            _RTM_NEWROUTE,
            _route(prefix.version, prefix.prefixlen, _RTN_PROHIBIT)
            + _attribute(_RTA_DST, prefix.network_address.packed),
            f"a route for {text}",
        )

    def way_out(self, gateway: str) -> None:
        """Send all that has no other route there."""
        address = ipaddress.ip_address(gateway)
        body = _route(address.version, 0, _RTN_UNICAST) + _attribute(_RTA_GATEWAY, address.packed)
        self._ask(_RTM_NEWROUTE, body, f"a route by {gateway}")

    def link(self, pid: int) -> None:
        """Make a link to the namespace of a process; both ends have the same name."""
        name = _attribute(_IFLA_IFNAME, LINK.encode() + b"\0")
        peer = bytes(16) + name + _attribute(_IFLA_NET_NS_PID, struct.pack("=I", pid))
        data = _attribute(_INFO_KIND, b"veth") + _attribute(_INFO_DATA, _attribute(_VETH_INFO_PEER, peer))
        self._ask(_RTM_NEWLINK, bytes(16) + name + _attribute(_IFLA_LINKINFO, data), "a link between namespaces")

    def up(self, index: int) -> None:
        """Begin to use an interface."""
        self._ask(_RTM_NEWLINK, struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP), "an interface")

    def address(self, index: int, text: str) -> None:
        """Give an interface an address."""
        own = ipaddress.ip_interface(text)
        family = socket.AF_INET if own.version == 4 else socket.AF_INET6
        body = struct.pack("=BBBBI", family, own.network.prefixlen, _IFA_F_NODAD if own.version == 6 else 0, 0, index)
        body += _attribute(_IFA_LOCAL, own.ip.packed) + _attribute(_IFA_ADDRESS, own.ip.packed)
        self._ask(_RTM_NEWADDR, body, f"the address {text}")


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _route(version: int, prefix_bits: int, kind: int) -> bytes:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return struct.pack("=BBBBBBBBI", family, prefix_bits, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, kind, 0)


def _set(name: str, value: str) -> None:
    """Set what the kernel does in this process's network namespace."""
    with open(f"/proc/sys/net/{name}", "w") as file:
        file.write(value)


def part(forbidden: list[str]) -> None:
    """Make the router's namespace, in which this process is, one that lets nothing reach these prefixes, and move this
    process to a new one behind it.

    Raises:
        Broken, OSError: a step failed.
    """
    used = [number for number, has in enumerate(families()) if has]
    router = _Netlink()
    for text in forbidden:
        if ipaddress.ip_network(text).version == 4 or 1 in used:
            router.prohibit(text)
    for number in used:
        _set(("ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit")[number], "0")  # every refusal is told
        _set(("ipv4/ip_forward", "ipv6/conf/all/forwarding")[number], "1")
    _check(_libc.unshare(_CLONE_NEWNET), "a network namespace of the sandbox")
    if 1 in used:
        _set("ipv6/conf/default/accept_dad", "0")
    router.link(os.getpid())
    inner = _Netlink()
    inner.up(1)
    own = socket.if_nametoindex(LINK)
    peer = _peer_of(own)
    router.up(peer)
    inner.up(own)
    for number in used:
        router.address(peer, ROUTER_LINKS[number])
        inner.address(own, TASK_LINKS[number])
        inner.way_out(ROUTER_LINKS[number].partition("/")[0])
    router.close()
    inner.close()


def _peer_of(index: int) -> int:
    """Return the number of the other end of a link, in its namespace: `NAME@ifNUMBER`, as `ip link` shows it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as netlink:
        netlink.send(struct.pack("=IHHII", 32, 18, 0x1, 1, 0) + struct.pack("=BxHiII", 0, 0, index, 0, 0))
        answer = netlink.recv(1 << 16)
    at = 32
    while at + 4 <= len(answer):
        size, kind = struct.unpack_from("=HH", answer, at)
        if kind == 5:  # IFLALINK
            return int(struct.unpack_from("=I", answer, at + 4)[0])
        at += max(4, size + 3 & ~3)
    raise Broken("a link without another end")


def main() -> None:
    """Make the network, then become the rest of the words."""
    pasta, user, words = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    try:
        forbidden = [*FORBIDDEN, *(address for address in own_addresses() if not address.startswith("127."))]
        holder = hold(user)
        connect(pasta, holder, user)
        enter(holder, user)
        part(list(dict.fromkeys(forbidden)))
        os.execv(words[0], words)
    except (Broken, OSError) as error:
        os.write(2, f"the network of the sandbox cannot be made: {error}\n".encode())
        os._exit(1)


if __name__ == "__main__":
    main()
