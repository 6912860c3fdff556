"""LAN discovery of the real host: DNS-SD by the zeroconf package.

A sighting is unauthenticated: it says where to knock, nothing more.  zeroconf is imported at first use.

Source: RFC 6762, RFC 6763.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import ipaddress
import re
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from p2pcompute.errors import ConfigError
from p2pcompute.host.interfaces import LanAnnouncement, LanSighting
from p2pcompute.host.tasks import TaskScope
from p2pcompute.ids import PUBLIC_KEY_BYTES, dht_id
from p2pcompute.limits import LAN_INVITES_MAX, NEARBY_MAX, NODE_NAME_CHARS_MAX, PROTOCOL_MAX

SERVICE_TYPE: Final = "_p2pcompute._udp.local."
_LOOKUP_MS: Final = 3000
_LOOKUPS_MAX: Final = 16
"""Details looked up at once."""
_ADDRESSES_MAX: Final = 8
_GROUP_HINT_BYTES: Final = 4
_NUMBERS: Final = re.compile(r"(?:[0-9]{1,4}(?:,[0-9]{1,4}){0,63})?", re.ASCII)
_WAYS: Final = re.compile(r"(?:[a-z]{1,16}(?:,[a-z]{1,16}){0,7})?", re.ASCII)


class RealLan:
    """Announces one node and reports the others.

    Args:
        interfaces: addresses of the interfaces to use; None for all.
        own_addresses: asked at each announcement for the addresses to announce.
        scope: owns the look-ups.
        names: of those interfaces; nothing is heard from others.
    """

    def __init__(
        self,
        interfaces: Sequence[str] | None,
        own_addresses: Callable[[], list[str]],
        scope: TaskScope,
        *,
        names: Sequence[str] = (),
    ) -> None:
        self._interfaces = interfaces
        self._names = names
        self._own_addresses = own_addresses
        self._scope = scope
        self._zeroconf: Any = None
        self._announced: Any = None
        self._announcing: asyncio.Future[None] | None = None
        self._own_key = b""
        self._browser: Any = None
        self._seen: Callable[[LanSighting], None] | None = None
        self._present: dict[str, LanSighting] = {}
        """What was reported as present, by service name; at most NEARBY_MAX."""
        self._lookups: dict[str, bool] = {}
        """Names being looked up, and whether they changed meanwhile."""
        self.dropped = 0
        """Announcements not reported: malformed, or more than NEARBY_MAX."""

    def _open(self) -> Any:
        if self._zeroconf is None:
            from zeroconf import InterfaceChoice, IPVersion
            from zeroconf.asyncio import AsyncZeroconf

            try:
                if self._interfaces is None:
                    self._zeroconf = AsyncZeroconf(interfaces=InterfaceChoice.All, ip_version=IPVersion.All)
                else:
                    self._zeroconf = AsyncZeroconf(interfaces=list(self._interfaces), ip_version=self._ip_version())
                    # Its socket for multicast is bound to every interface; it is in use from the next turn of the loop.
                    hear_only(self._zeroconf.zeroconf.engine._listen_socket, self._names)
            except OSError as error:
                raise ConfigError(
                    "LAN discovery cannot start",
                    error.strerror or str(error),
                    "switch it off, or allow multicast DNS (UDP port 5353)",
                ) from error
        return self._zeroconf

    def _ip_version(self) -> Any:
        from zeroconf import IPVersion

        versions = {ipaddress.ip_address(host).version for host in self._interfaces or ()}
        if versions == {4}:
            return IPVersion.V4Only
        return IPVersion.V6Only if versions == {6} else IPVersion.All

    async def announce(self, announcement: LanAnnouncement | None) -> None:
        """Announce, replace the announcement, or withdraw it.

        Raises:
            ConfigError: multicast DNS cannot be used here.
        """
        if self._announcing is not None:
            # zeroconf repeats an announcement in the background; it must not come after the goodbye.
            announcing, self._announcing = self._announcing, None
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)
        if self._announced is not None and announcement is not None and self._own_key == announcement.public_key:
            info = _service_info(announcement, self._own_addresses())
            self._announcing = await self._zeroconf.async_update_service(info)
            self._announced = info
            return
        if self._announced is not None:
            goodbye = await self._zeroconf.async_unregister_service(self._announced)
            self._announced = None
            await goodbye
        self._own_key = b""
        if announcement is None:
            await self._close_if_idle()
            return
        zeroconf = self._open()
        self._own_key = announcement.public_key
        info = _service_info(announcement, self._own_addresses())
        self._announcing = await zeroconf.async_register_service(info, allow_name_change=True)
        self._announced = info

    async def browse(self, seen: Callable[[LanSighting], None] | None) -> None:
        """Report what others announce, or stop.

        Raises:
            ConfigError: multicast DNS cannot be used here.
        """
        if self._browser is not None:
            await self._browser.async_cancel()
            self._browser = None
        self._seen = seen
        self._present.clear()
        if seen is None:
            await self._close_if_idle()
            return
        from zeroconf.asyncio import AsyncServiceBrowser

        self._browser = AsyncServiceBrowser(self._open().zeroconf, SERVICE_TYPE, handlers=[self._changed])

    def _changed(self, zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        """zeroconf's callback, on the event loop."""
        from zeroconf import ServiceStateChange

        if state_change is ServiceStateChange.Removed:
            gone = self._present.pop(name, None)
            if gone is not None:
                self._report(LanSighting(announcement=gone.announcement, addresses=gone.addresses, is_present=False))
            return
        if name in self._lookups:
            self._lookups[name] = True
            return
        is_full = name not in self._present and len(self._present) + len(self._lookups) >= NEARBY_MAX
        if is_full or len(self._lookups) >= _LOOKUPS_MAX:
            self.dropped += 1
            return
        self._lookups[name] = False
        self._scope.spawn(self._look_up(name), "lan-lookup")

    async def _look_up(self, name: str) -> None:
        from zeroconf import NotRunningException
        from zeroconf.asyncio import AsyncServiceInfo

        try:
            while self._zeroconf is not None:
                self._lookups[name] = False
                info = AsyncServiceInfo(SERVICE_TYPE, name)
                if await info.async_request(self._zeroconf.zeroconf, _LOOKUP_MS):
                    self._found(name, info)
                if not self._lookups[name]:
                    return
        except NotRunningException:  # closed meanwhile
            return
        finally:
            del self._lookups[name]

    def _found(self, name: str, info: Any) -> None:
        sighting = _sighting(info)
        if sighting is None:
            self.dropped += 1
        elif sighting.announcement.public_key != self._own_key and self._present.get(name) != sighting:
            self._present[name] = sighting
            self._report(sighting)

    def _report(self, sighting: LanSighting) -> None:
        if self._seen is not None:
            self._seen(sighting)

    async def close(self) -> None:
        """Withdraw the announcement and stop."""
        await self.browse(None)
        await self.announce(None)

    async def _close_if_idle(self) -> None:
        """Close the sockets of multicast DNS while nothing is announced and nobody listens."""
        if self._zeroconf is not None and self._browser is None and self._announced is None:
            zeroconf, self._zeroconf = self._zeroconf, None
            await zeroconf.async_close()
            await asyncio.sleep(0)


def hear_only(sock: socket.socket | None, interfaces: Sequence[str]) -> None:
    """Have the kernel drop what comes to `sock` from any other interface.  Does nothing where it cannot (not Linux).

    Source: Documentation/networking/filter.rst of Linux; SO_ATTACH_FILTER needs no privilege.
    """
    if sock is None or not interfaces or sys.platform != "linux":
        return
    indices = [socket.if_nametoindex(name) for name in interfaces]
    load_interface, jump_if_equal, give_back = 0x20, 0x15, 0x06
    program = [(load_interface, 0, 0, 0xFFFFF008)]
    program += [(jump_if_equal, len(indices) - at, 0, index) for at, index in enumerate(indices)]
    program += [(give_back, 0, 0, 0), (give_back, 0, 0, 0xFFFF)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    attach_filter = 26
    sock.setsockopt(socket.SOL_SOCKET, attach_filter, struct.pack("HL", len(program), ctypes.addressof(code)))


def _service_info(announcement: LanAnnouncement, addresses: Sequence[str]) -> Any:
    """The DNS-SD service of an announcement.  Its name is derived from the key, so it is unique and stable."""
    from zeroconf.asyncio import AsyncServiceInfo

    label = dht_id(announcement.public_key).hex()
    return AsyncServiceInfo(
        SERVICE_TYPE,
        f"{label}.{SERVICE_TYPE}",
        port=announcement.port,
        parsed_addresses=list(addresses),
        properties={
            "k": base64.b32encode(announcement.public_key).decode().rstrip("="),
            "n": announcement.name[:NODE_NAME_CHARS_MAX],
            "g": announcement.group_hint.hex(),
            "i": ",".join(map(str, announcement.invites[:LAN_INVITES_MAX])),
            "a": ",".join(announcement.admits),
            "v": str(PROTOCOL_MAX),
        },
        server=f"{label}.local.",
    )


def _sighting(info: Any) -> LanSighting | None:
    """What a service says, or None when it is malformed.  Everything in it is from a stranger."""
    properties = info.properties
    try:
        key = base64.b32decode((properties.get(b"k") or b"").decode("ascii") + "====")
        name = (properties.get(b"n") or b"").decode("utf-8")
        hint = bytes.fromhex((properties.get(b"g") or b"").decode("ascii"))
        numbers = (properties.get(b"i") or b"").decode("ascii")
        ways = (properties.get(b"a") or b"").decode("ascii")
    except (ValueError, AttributeError):
        return None
    addresses = tuple(str(address).partition("%")[0] for address in info.parsed_addresses())[:_ADDRESSES_MAX]
    is_valid = (
        len(key) == PUBLIC_KEY_BYTES
        and len(hint) in (0, _GROUP_HINT_BYTES)
        and 0 < (info.port or 0) < 65536
        and len(name) <= NODE_NAME_CHARS_MAX
        and name.isprintable()
        and addresses
        and _NUMBERS.fullmatch(numbers)
        and _WAYS.fullmatch(ways)
    )
    if not is_valid:
        return None
    announcement = LanAnnouncement(
        public_key=key,
        name=name,
        port=int(info.port),
        group_hint=hint,
        invites=tuple(int(number) for number in numbers.split(",")[:LAN_INVITES_MAX] if number),
        admits=tuple(way for way in ways.split(",") if way),
    )
    return LanSighting(announcement=announcement, addresses=addresses, is_present=True)
