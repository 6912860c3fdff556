"""Keeps the work of others within what the machine's owner allows: looks, judges, applies; see `comfort`.

What runs beyond the limit stands still first, so that the machine is free at once; what stands still for EVICT_S goes
back to its owner.  A pause is kept over restarts.

Bounds: one look every LOOK_S while work of others runs, every LOOK_IDLE_S otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from p2pcompute.config import Settings
from p2pcompute.host.interfaces import Host, Timer
from p2pcompute.host.tasks import TaskScope
from p2pcompute.node.comfort import AUTO, Pause, Rules, Senses, Verdict, judge, profile_for, rules_of, slots_of
from p2pcompute.node.facade import IdleView
from p2pcompute.scheduler.service import Scheduler
from p2pcompute.store.journal import Journal

LOOK_S: Final = 3.0
LOOK_IDLE_S: Final = 30.0
EVICT_S: Final = 60.0
"""How long a task may stand still here before it is run elsewhere."""
DUTY_S: Final = 2.0
"""Where less than a core is allowed: a slot works for a part of each such period."""
PAUSE_META: Final = "pause"


class ComfortSettings:
    """The rules as they were set; what was not set is as the profile has it."""

    def __init__(self, profile: str, *, in_use: str, idle: str, battery: str, hours: str) -> None:
        """Raises:
        UsageError, ConfigError: they cannot be.
        """
        self._texts = {"in_use": in_use, "idle": idle, "battery": battery, "hours": hours}
        self.profile = profile
        for name in ("laptop", "desktop", "always") if profile == AUTO else (profile,):
            rules_of(name, **self._texts)

    @classmethod
    def of(cls, settings: Settings) -> ComfortSettings:
        """Return what the settings say.

        Raises:
            UsageError, ConfigError: they cannot be.
        """
        node, cpu = settings.node, settings.cpu
        return cls(node.profile, in_use=cpu.in_use, idle=cpu.idle, battery=node.battery, hours=node.hours)

    def rules(self, senses: Senses) -> tuple[str, Rules]:
        """Return the name of the profile that holds, and the rules."""
        name = profile_for(senses) if self.profile == AUTO else self.profile
        return name, rules_of(name, **self._texts)


class Comfort:
    """Applies the rules of the machine's owner to one node."""

    def __init__(
        self,
        host: Host,
        scope: TaskScope,
        scheduler: Scheduler,
        journal: Journal | None,
        settings: ComfortSettings,
        *,
        local_time: Callable[[float], datetime] = lambda wall_s: datetime.fromtimestamp(wall_s).astimezone(),
        share: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """Args:
        share: what part of the cores is for this node, where other groups have nodes on this machine too.
        local_time: of a moment of the wall clock, in the time zone of the machine.
        """
        self._host = host
        self._scope = scope
        self._scheduler = scheduler
        self._journal = journal
        self.settings = settings
        self._local_time = local_time
        self._share = share
        self.senses = Senses()
        self.pause: Pause | None = None
        self.profile = ""
        self.verdict: Verdict | None = None
        """None until the first look."""
        self.since_s = 0.0
        """Wall clock: since when `verdict.why` holds."""
        self._cores = 0.0
        self._held: dict[int, float] = {}
        """Slot that stands still → since when."""
        self._end: Timer | None = None
        """Ends a pause when its time has come."""
        self._duty = 1.0
        """Part of the time for which the slots of others work."""

    async def start(self) -> None:
        """Take up a pause of an earlier life, look for the first time, and go on looking."""
        kept = await self._journal.meta(PAUSE_META) if self._journal is not None else None
        if isinstance(kept, list) and len(kept) == 2 and all(isinstance(one, int | None) for one in kept) and kept[0]:
            self.pause = Pause(kept[0] / 1000, None if kept[1] is None else kept[1] / 1000)
        await self.look()
        self._scope.spawn(self._watch(), "comfort")

    # --- what the owner says ----------------------------------------------------------------------

    async def pause_work(self, for_s: float | None, *, now: bool) -> None:
        """Take no more work, and let what has not started go.

        Args:
            for_s: until it ends by itself; None: until `resume_work`.
            now: end what runs too; it is run again elsewhere.
        """
        wall_s = self._host.clock.wall()
        self.pause = Pause(wall_s, None if for_s is None else wall_s + for_s)
        await self._keep_pause()
        self._apply()
        if now:
            self._let_go()
            self._scheduler.evict(list(self._scheduler.worker.core.held))

    async def resume_work(self) -> bool:
        """Take work again; returns whether there was a pause."""
        was_paused, self.pause = self.pause is not None, None
        await self._keep_pause()
        self._apply()
        return was_paused

    async def change(self, settings: ComfortSettings) -> None:
        """Go by other rules from now on."""
        self.settings = settings
        await self.look()

    async def _keep_pause(self) -> None:
        if self._journal is None:
            return
        pause = self.pause
        value: list[int | None] | None = None
        if pause is not None:
            value = [int(pause.since_s * 1000), None if pause.until_s is None else int(pause.until_s * 1000)]
        await self._host.store.commit([self._journal.meta_write(PAUSE_META, value)])

    # --- looking ----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        looked_at = self._host.clock.now()
        while True:
            is_busy = bool(self._scheduler.worker.core.foreign_busy())
            if is_busy and self._duty < 1.0:
                # Within each period once at work and once standing still.
                await self._host.clock.sleep(DUTY_S * self._duty)
                self._hold_all()
                await self._host.clock.sleep(DUTY_S * (1.0 - self._duty))
                self._let_go()
            else:
                await self._host.clock.sleep(LOOK_S)
            now = self._host.clock.now()
            if is_busy or self._held or now - looked_at >= LOOK_IDLE_S:
                looked_at = now
                await self.look()

    async def look(self) -> None:
        """See how the machine is, and apply the rules to it."""
        seen = await self._host.probe.attributes(("battery", "portable", "owner.present", "cpus"))

        def flag(name: str) -> bool | None:
            found: Any = seen[name].value if name in seen else None
            return found if isinstance(found, bool) else None

        self.senses = Senses(flag("battery"), flag("owner.present"), flag("portable"))
        cores: Any = seen["cpus"].value if "cpus" in seen else None
        self._cores = float(cores) if isinstance(cores, int | float) else float(self._host.runner.slot_count)
        self._apply()

    def _apply(self) -> None:
        wall_s = self._host.clock.wall()
        if self.pause is not None and self.pause.until_s is not None and wall_s >= self.pause.until_s:
            self.pause = None
        if self._end is not None:
            self._end.cancel()
            self._end = None
        if self.pause is not None and self.pause.until_s is not None:
            self._end = self._host.clock.call_later(self.pause.until_s - wall_s, self._apply)
        self.profile, rules = self.settings.rules(self.senses)
        local, share = self._local_time(wall_s), self._share()
        verdict = judge(rules, self.senses, self.pause, wall_s=wall_s, local=local, group_share=share)
        if self.verdict is None or verdict.why != self.verdict.why:
            self.since_s = wall_s
        self.verdict = verdict
        slots, self._duty = slots_of(verdict.others_share, self._cores, self._host.runner.slot_count)
        is_all = slots >= self._host.runner.slot_count
        self._scheduler.allow(None if is_all else slots, own_runs=verdict.own_runs)
        self._hold_beyond(slots)

    def _hold_beyond(self, slots: int) -> None:
        """Let the work of others beyond so many slots stand still, and go when that has lasted."""
        now = self._host.clock.now()
        beyond = self._scheduler.worker.core.foreign_busy()[slots:]
        if self.verdict is not None and not self.verdict.own_runs:
            beyond = []  # a pause lets what runs come to its end, unless it was told otherwise
        self._held = {slot: self._held.get(slot, now) for slot in beyond}
        self._host.runner.hold(beyond)
        late = frozenset(slot for slot, since in self._held.items() if now - since >= EVICT_S)
        if late:
            held = self._scheduler.worker.core.held.values()
            self._scheduler.evict([one.run_id for one in held if one.slot in late])

    def _hold_all(self) -> None:
        now = self._host.clock.now()
        slots = self._scheduler.worker.core.foreign_busy()
        self._held = dict.fromkeys(slots, now)
        self._host.runner.hold(slots)

    def _let_go(self) -> None:
        self._held.clear()
        self._host.runner.hold(())

    def view(self) -> IdleView:
        """What holds now, and why."""
        verdict = self.verdict
        assert verdict is not None, "not started"
        return IdleView(
            profile=self.profile,
            others_share=verdict.others_share,
            own_runs=verdict.own_runs,
            why=verdict.why,
            since_s=self.since_s,
            resumes=verdict.resumes,
            rules=tuple((line.rule, line.now, line.result) for line in verdict.lines),
            standing_still=len(self._held),
        )

    def close(self) -> None:
        """Leave nothing standing still."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        self._let_go()
