"""Runs one stage on several machines of a Ray cluster at the same time.

Each machine runs the stage in a copy of the project, as a single machine would. Environment variables give its number,
and `vocabgraft.training.distributed` connects the processes. All machines end with the same outputs; those of the first
one are pushed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flows.engine.dag import Stage
from flows.engine.run_record import RUN_RECORD
from flows.engine.stage_outcome import Attempt, Ending
from flows.engine.stage_run import StageLog
from flows.remote.work import Work, carry_out_anywhere, free_address, why_failed
from vocabgraft.training.distributed import NODE, NODES, RENDEZVOUS

SECONDS_BETWEEN_LOOKS = 1.0
# After one machine has failed: the others notice by their connections, and the cluster notices a lost machine after
# five missed health checks of at most 13 s each.
SECONDS_FOR_THE_OTHERS = 90.0
Halted = Callable[[], Attempt | None]


def made_together(work: Work, stage: Stage, log: StageLog, halted: Halted) -> Attempt | None:
    """Make a stage's outputs on `stage.nodes` machines; returns None when the first one has pushed them.

    A lost machine counts as a crash: the caller retries the whole stage on the machines that are left.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    share = {kind: amount for kind, amount in _share(stage).items() if amount}
    group = placement_group([share] * stage.nodes, strategy="STRICT_SPREAD")
    log.line(f"{stage.name} goes to {stage.nodes} machines of the cluster, which has {_alive()}: {share} of each")
    try:
        while not group.wait(SECONDS_BETWEEN_LOOKS):
            if (why := halted()) is not None:
                return why
        return _outcome(_started(work, stage, group), log, halted)
    except ray.exceptions.RayError as error:
        return Attempt(Ending.FAULT, f"one of its {stage.nodes} machines was lost: {error}")
    finally:
        # This ends everything of it that still runs.
        remove_placement_group(group)


def _share(stage: Stage) -> dict[str, float]:
    return {"CPU": stage.resources.get("cpus", 1.0), "GPU": stage.resources.get("gpus", 0.0)}


def _alive() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def _started(work: Work, stage: Stage, group: Any) -> list[Any]:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def on(number: int, function: Callable[..., Any]) -> Any:
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
        share = _share(stage)
        # No retries by Ray: if one machine started again, the others would wait for it, so all must start again.
        return ray.remote(function).options(
            num_cpus=share["CPU"], num_gpus=share["GPU"], max_retries=0, scheduling_strategy=place
        )

    address = ray.get(on(0, free_address).remote())
    pieces = []
    for number in range(stage.nodes):
        variables = {NODES: str(stage.nodes), NODE: str(number), RENDEZVOUS: address}
        piece = replace(work, variables=variables, after=work.after if number == 0 else ())
        pieces.append(on(number, carry_out_anywhere).remote(piece))
    return pieces


def _outcome(pieces: Sequence[Any], log: StageLog, halted: Halted) -> Attempt | None:
    """Wait for all machines, but not much longer once one has failed; the first failure, or None."""
    import ray

    failed: Attempt | None = None
    waiting, deadline = list(pieces), float("inf")
    while waiting and time.monotonic() < deadline:
        if (why := halted()) is not None:
            return why
        ended, waiting = ray.wait(waiting, timeout=SECONDS_BETWEEN_LOOKS)
        for piece in ended:
            attempt = told(ray.get(piece), log)
            if failed is None and attempt is not None:
                failed, deadline = attempt, time.monotonic() + SECONDS_FOR_THE_OTHERS
    return failed


def told(done: Mapping[str, Any], log: StageLog) -> Attempt | None:
    """Log the output of a finished job; the reason if it failed, or None."""
    for line in done["said"].splitlines():
        log.line(line)
    if done["ok"]:
        return None
    return Attempt(Ending.FAILED, *why_failed(done, str(RUN_RECORD)))
