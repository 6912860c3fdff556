"""A job of a program as its embedded node gets it: code and packages in the store, spec and terms from the options."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from p2pcompute.api.explanations import explanation_of, never
from p2pcompute.api.functions import requirements_of
from p2pcompute.api.futures import OpenJob
from p2pcompute.api.options import TaskOptions
from p2pcompute.errors import UsageError
from p2pcompute.execution.locking import make_lock
from p2pcompute.execution.locks import Lock
from p2pcompute.execution.spec import JobSpec, TaskKind
from p2pcompute.host.real_blobs import FileBlobs
from p2pcompute.limits import JOB_NAME_CHARS_MAX
from p2pcompute.node.facade import ExplanationView
from p2pcompute.node.node import Node
from p2pcompute.node.views import find_nodes
from p2pcompute.scheduler.terms import JobTerms

BEGIN_S_MAX: Final = 5.0
"""Who asks about a job that was just begun waits so long for its first inputs."""
BEGIN_LOOK_S: Final = 0.02


class Submitter:
    """Submits the jobs of one embedded node."""

    def __init__(self, node: Node, blobs: FileBlobs) -> None:
        self._node = node
        self._blobs = blobs
        self._locks: dict[Path, Lock] = {}
        """Packages by the file that lists them: the same versions for as long as this lives."""

    async def submit(self, job: OpenJob) -> None:
        """Give a job to the node; its id and what it keeps in the store are noted in it.

        Raises:
            P2pcError: it cannot be run, or be taken.
        """
        shipment, options = job.shipment, job.shipment.options
        for content in (shipment.code, shipment.modules_zip):
            if content:
                job.code_refs.append(await self._blobs.put(content))
        lock = await self._packages(options, job.kind)
        packages = None if lock is None else await self._blobs.put(lock.text)
        if packages is not None:
            job.code_refs.append(packages)
        self._blobs.pin(job.code_refs)
        spec = JobSpec(
            kind=job.kind,
            code=job.code_refs[0] if shipment.code else None,
            modules=job.code_refs[1] if shipment.modules_zip else None,
            env=dict(options.env),
            cpus=float(options.cpus),
            mem_bytes=options.mem_bytes,
            gpus=float(options.gpus),
            disk_bytes=options.disk_bytes,
            timeout_s=options.timeout_s,
            network=options.network == "full",
            sandbox="" if options.sandbox == "auto" else options.sandbox,
            digits=options.digits,
            fuel=job.fuel,
            packages=packages,
            platforms=() if lock is None else lock.platforms,
            is_built=lock is not None and bool(lock.built),
        )
        is_python = job.kind is TaskKind.FUNCTION or packages is not None
        python = (sys.version_info.major, sys.version_info.minor) if is_python else None
        name = shipment.name[:JOB_NAME_CHARS_MAX]
        terms = JobTerms(name=name, retries=options.retries, python=python, **options.demands)
        if options.is_choosy or packages is not None:
            terms = await self._chosen(terms, spec, options)
        job.job_id = await self._node.submit_job(terms, spec)

    async def _packages(self, options: TaskOptions, kind: TaskKind) -> Lock | None:
        """Return the packages of a job; None: it has none of its own.

        Raises:
            UsageError: they cannot be had.
        """
        requirements = requirements_of(options, is_of_script=kind is TaskKind.FUNCTION)
        if requirements is None:
            return None
        lock = self._locks.get(requirements.path)
        if lock is None:
            lock = self._locks[requirements.path] = await asyncio.to_thread(make_lock, requirements)
        return lock

    async def _chosen(self, terms: JobTerms, spec: JobSpec, options: TaskOptions) -> JobTerms:
        """Return the terms with what is asked of nodes.

        Raises:
            UsageError: a node that is named is not known.
            NoEligibleNode: every node that is known will never run it.
        """
        terms = replace(
            terms,
            require=tuple(options.require),
            prefer=tuple(options.prefer),
            on=find_nodes(self._node.peers(), options.on, self._node.trust()),
            not_on=find_nodes(self._node.peers(), options.not_on, self._node.trust(), is_to_avoid=True),
        )
        view = await self._node.explain((terms, spec), until_possible=True)
        if view.report.can_never_run and not view.left_out:
            raise never(explanation_of(view))
        return terms


async def explain_job(node: Node, job: OpenJob) -> ExplanationView | None:
    """Ask the nodes why a job does not run, once it has begun.  None: it is over, and forgotten.

    Raises:
        UsageError: nothing of it was submitted.
    """
    until_s = node.clock.now() + BEGIN_S_MAX
    while not job.job_id and job.error is None and node.clock.now() < until_s:
        await node.clock.sleep(BEGIN_LOOK_S)  # its first inputs are on their way
    if not job.job_id:
        none = UsageError("this job has not begun", "no task of it was submitted", "submit one", code="no-job")
        raise job.error or none
    if job.job_id not in node.scheduler.owner.books:
        return None
    return await node.explain(job.job_id)
