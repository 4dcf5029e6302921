"""A stage on several machines of a Ray cluster at the same time.

Each runs it in a copy of the project, as one machine alone would, and is told in its environment which of them it is:
`vocabgraft.training.distributed` joins what they start. All of them end with the same outputs; the first one's
are pushed.
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
# When one has failed: the others hear of it by their connections, and the cluster of a machine that is lost by five
# health checks that it missed, each of at most 13 s.
SECONDS_FOR_THE_OTHERS = 90.0
Halted = Callable[[], Attempt | None]


def made_together(work: Work, stage: Stage, log: StageLog, halted: Halted) -> Attempt | None:
    """Make a stage's outputs on `stage.nodes` machines; None when the first one has pushed them.

    The loss of a machine is a fault: whoever asked does it again, and all of it on machines that are there then.
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
        # Ends what still runs of it.
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
        # The others would wait for the one that is begun anew, so all of them are.
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
    """What came of them: none waits for ever for one that has failed."""
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
    """Log what a piece of work said; why it failed, or None where it did not."""
    for line in done["said"].splitlines():
        log.line(line)
    if done["ok"]:
        return None
    return Attempt(Ending.FAILED, *why_failed(done, str(RUN_RECORD)))
