"""The calls about the group, how far its members are trusted, and when this machine works for others."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from p2pcompute.daemon.calls import (
    ComfortBody,
    EmptyBody,
    EntryBody,
    InviteBody,
    JoinBody,
    LevelBody,
    PauseBody,
    PolicyBody,
    RemoveBody,
    RolesBody,
)
from p2pcompute.daemon.requests import WAIT_S_MAX, JsonResponse, query_text, read_body
from p2pcompute.daemon.uploads import decode_body
from p2pcompute.daemon.views import evidence_json, idle_json, policy_json, time_text, trust_json
from p2pcompute.errors import UsageError
from p2pcompute.ids import format_device_id, parse_device_id
from p2pcompute.limits import INVITE_USES_MAX, OPEN_PUZZLE_BITS, OPEN_PUZZLE_BITS_MAX
from p2pcompute.node.facade import NodeFacade
from p2pcompute.trust.admission import PSK, STANDING, Entry, check_psk
from p2pcompute.trust.groups import MEMBER_ROLES
from p2pcompute.trust.levels import Level

INVITE_S_MAX: Final = 365 * 86400.0
"""How long an invitation may be good, as a person asks for it."""

_ROLES: Final[dict[str, tuple[str, ...]]] = {"both": MEMBER_ROLES, "worker": ("work",), "submitter": ("submit",)}
"""What an invitation grants, by the word of `p2pc invite --role`."""


class GroupApi:
    """Serves those of `CALLS`; each method answers one."""

    def __init__(self, node: NodeFacade) -> None:
        self._node = node

    # --- group ------------------------------------------------------------------------------------

    async def invite(self, request: Request) -> Response:
        body = decode_body(await read_body(request), InviteBody)
        if not 1 <= body.uses <= INVITE_USES_MAX:
            raise UsageError(f"an invitation has 1 to {INVITE_USES_MAX} uses", code="bad-request")
        if not 1 <= body.expires_s <= INVITE_S_MAX:
            raise UsageError("an invitation lives from a second to a year", code="bad-request")
        invite = await self._node.invite(
            uses=body.uses, expires_s=body.expires_s, words=body.words, roles=_ROLES[body.role], is_mine=body.mine
        )
        return JsonResponse(
            {
                "id": invite.id.hex(),
                "token": invite.token or None,
                "code": invite.code or None,
                "addresses": list(invite.addresses),
                "expires": time_text(invite.expires),
                "group": invite.group,
                "uses": invite.uses,
                "handle": invite.handle,
            }
        )

    async def invites(self, request: Request) -> Response:
        items = [
            {
                "id": view.id.hex(),
                "handle": view.handle,
                "uses_left": view.uses_left,
                "expires": time_text(view.expires),
                "mine": view.is_mine,
                "roles": list(view.roles),
            }
            for view in self._node.open_invites()
        ]
        return JsonResponse({"schema": "p2pc.invites/1", "items": items})

    @staticmethod
    def _invitation(request: Request) -> bytes:
        try:
            return bytes.fromhex(request.path_params["id"])
        except ValueError:
            raise UsageError("this is no invitation", "its id is hexadecimal", code="bad-request") from None

    async def invite_state(self, request: Request) -> Response:
        state = self._node.invite_state(self._invitation(request))
        return JsonResponse(
            {
                "ending": state.ending or None,
                "admitted": [
                    {"id": format_device_id(one.key), "name": one.name, "address": one.address}
                    for one in state.admitted
                ],
                "tries_left": state.tries_left,
                "refused": list(state.refused),
            }
        )

    async def withdraw_invite(self, request: Request) -> Response:
        decode_body(await read_body(request), EmptyBody)
        return JsonResponse({"was_open": self._node.withdraw_invite(self._invitation(request))})

    async def doors(self, request: Request) -> Response:
        method = query_text(request, "method")
        if method not in STANDING:
            raise UsageError(f"{method!r} is no standing way", f"they are {', '.join(STANDING)}", code="bad-request")
        items = [
            {
                "name": door.name,
                "id": format_device_id(door.key),
                "address": door.address,
                "known": None if door.pinned is None else door.pinned == door.key,
            }
            for door in await self._node.doors(method, request.query_params.get("via", ""))
        ]
        return JsonResponse({"schema": "p2pc.doors/1", "items": items})

    async def join(self, request: Request) -> Response:
        body = decode_body(await read_body(request), JoinBody)
        if bool(body.token) == (body.entry is not None):
            raise UsageError("either an invitation or a standing way", "", code="bad-request")
        joined = await self._node.join(body.token if body.entry is None else _entry(body.entry), name=body.name)
        return JsonResponse(
            {
                "group": joined.group,
                "inviter": joined.inviter,
                "inviter_id": format_device_id(joined.inviter_key),
                "address": joined.address,
                "mine": joined.is_mine,
            }
        )

    async def trust(self, request: Request) -> Response:
        return JsonResponse({"schema": "p2pc.trust/1", "items": [trust_json(view) for view in self._node.trust()]})

    async def evidence(self, request: Request) -> Response:
        key = parse_device_id(request.path_params["ref"])
        return JsonResponse(evidence_json(await self._node.evidence(key)))

    async def set_level(self, request: Request) -> Response:
        body = decode_body(await read_body(request), LevelBody)
        key = parse_device_id(request.path_params["ref"])
        return JsonResponse(trust_json(self._node.set_level(key, Level(body.level), reason=body.reason)))

    async def remove(self, request: Request) -> Response:
        body = decode_body(await read_body(request), RemoveBody)
        key = parse_device_id(request.path_params["ref"])
        return JsonResponse(trust_json(self._node.remove(key, reason=body.reason)))

    async def set_roles(self, request: Request) -> Response:
        body = decode_body(await read_body(request), RolesBody)
        key = parse_device_id(request.path_params["ref"])
        return JsonResponse(trust_json(self._node.set_roles(key, body.roles, reason=body.reason)))

    async def name_heir(self, request: Request) -> Response:
        decode_body(await read_body(request), EmptyBody)
        return JsonResponse(trust_json(self._node.name_heir(parse_device_id(request.path_params["ref"]))))

    async def policy(self, _request: Request) -> Response:
        return JsonResponse(policy_json(self._node.policy()))

    async def set_policy(self, request: Request) -> Response:
        body = decode_body(await read_body(request), PolicyBody)
        if body.own_accept is not None:
            own = self._node.set_own_accept(body.own_accept.strip())
            if (body.accept, body.open, body.puzzle) == (None, None, None):
                return JsonResponse(policy_json(own))
        policy = self._node.policy().in_force
        if body.accept is not None:
            policy = replace(policy, accept=body.accept.strip())
        if body.puzzle is not None and not 0 <= body.puzzle <= OPEN_PUZZLE_BITS_MAX:
            raise UsageError(f"the work at the door has 0 to {OPEN_PUZZLE_BITS_MAX} bits", "", code="bad-request")
        if body.open is False:
            policy = replace(policy, open_bits=None)
        elif body.open or (policy.is_open and body.puzzle is not None):
            known = OPEN_PUZZLE_BITS if policy.open_bits is None else policy.open_bits
            policy = replace(policy, open_bits=known if body.puzzle is None else body.puzzle)
        elif body.puzzle is not None:
            raise UsageError("there is no door to work at", "the group is not open", "p2pc group policy open=true")
        return JsonResponse(policy_json(self._node.set_policy(policy)))

    async def leave(self, request: Request) -> Response:
        decode_body(await read_body(request), EmptyBody)
        await self._node.leave()
        return JsonResponse({})

    # --- the machine's owner ----------------------------------------------------------------------

    async def idle(self, request: Request) -> Response:
        return JsonResponse(idle_json(await self._node.idle()))

    async def pause(self, request: Request) -> Response:
        body = decode_body(await read_body(request), PauseBody)
        if body.for_s is not None and not 0 < body.for_s <= WAIT_S_MAX:
            raise UsageError("a pause lasts from a moment to a year", code="bad-request")
        return JsonResponse(idle_json(await self._node.pause(body.for_s, now=body.now)))

    async def resume(self, request: Request) -> Response:
        decode_body(await read_body(request), EmptyBody)
        return JsonResponse({"was_paused": await self._node.resume()})

    async def set_comfort(self, request: Request) -> Response:
        body = decode_body(await read_body(request), ComfortBody)
        view = await self._node.set_comfort(
            profile=body.profile, in_use=body.in_use, idle=body.idle, battery=body.battery, hours=body.hours
        )
        return JsonResponse(idle_json(view))


def _entry(body: EntryBody) -> Entry:
    try:
        proof = bytes.fromhex(body.proof)
    except ValueError:
        raise UsageError("this is no proof", "it is hexadecimal", code="bad-request") from None
    if body.method == PSK:
        check_psk(proof, "this")
    inviter = None if body.inviter_id is None else parse_device_id(body.inviter_id)
    return Entry(method=body.method, proof=proof, via=body.via, inviter=inviter)
