"""What the project starts on one machine is reached from that machine alone."""

import json
import os
from pathlib import Path

import pytest

from vocabgraft.training.distributed import launch

# Joins the group, computes with it, and writes down which addresses it and its launcher listen on.
WORKER = """
import json, os, sys
import psutil, torch
import torch.distributed as dist
from vocabgraft.training.distributed import enter
enter()
dist.init_process_group("gloo")
number = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(number)
heard = {
    connection.laddr.ip
    for pid in (os.getpid(), os.getppid())
    for connection in psutil.Process(pid).net_connections("inet")
    if connection.status == psutil.CONN_LISTEN
}
dist.barrier()
with open(os.path.join(sys.argv[1], os.environ["RANK"]), "w") as stream:
    json.dump({"sum": number.item(), "heard": sorted(heard)}, stream)
dist.barrier()
dist.destroy_process_group()
"""


def test_processes_of_one_machine_listen_on_loopback_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("needs two cores: the launcher starts no more processes than there are")
    # Of the machine's name, as most machines of a network have it, torch would take an address that others reach.
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    launch(["-c", WORKER, str(tmp_path)], 2)
    for rank in "01":
        found = json.loads((tmp_path / rank).read_text(encoding="utf-8"))
        assert found["sum"] == 3.0
        assert found["heard"], "the store and the connections between the processes"
        assert set(found["heard"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
