"""Small blocks that outlive a tensor do not keep glibc's heap from using the tensor's place again; what is free."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from rmtrain.cli import _TUNABLES
from rmtrain.model import devices

TENSOR, LAYERS = 100_000, 20  # bytes; each layer keeps one of its ten tensors, and some small blocks
PROGRAM = f"""
import ctypes, sys
from rmtrain.model.host_memory import keep_tensors_whole
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.sbrk.argtypes, libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
def tensor():
    place = ctypes.c_void_p()
    libc.posix_memalign(ctypes.byref(place), 64, {TENSOR})
    return place
def layer():
    made = [tensor() for _ in range(10)]
    for _ in range(20):
        libc.malloc(40)
    for place in made[:-1]:
        libc.free(place)
if sys.argv[1:] == ["whole"]:
    keep_tensors_whole()
layer()
before = libc.sbrk(0)
for _ in range({LAYERS}):
    layer()
print(libc.sbrk(0) - before)
"""


def grown(*arguments: str, tunables: str = _TUNABLES) -> int:
    """Bytes by which the heap of a process grows while its layers run."""
    environment = os.environ | {"GLIBC_TUNABLES": tunables, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], env=environment, capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_freed_tensors_place_is_used_again() -> None:
    kept = TENSOR * LAYERS
    assert grown("whole") < 1.1 * kept
    assert grown() > 5 * kept  # what happens without


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_nothing_is_done_under_settings_of_the_users_own() -> None:
    assert grown("whole", tunables="glibc.malloc.arena_max=1") > 5 * TENSOR * LAYERS


@pytest.mark.parametrize(("limit", "free"), [(5000, 3000), (1000, 0), (1 << 62, None)])
def test_the_limit_of_a_container_bounds_what_is_free(
    limit: int, free: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "host_memory", lambda: limit)
    monkeypatch.setattr(devices, "resident_memory", lambda: 2000)
    found = devices.free_memory(torch.device("cpu"))
    assert found == free if free is not None else found > 1 << 20


def test_processes_of_other_machines_take_no_memory_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "host_memory", lambda: 5000)
    monkeypatch.setattr(devices, "resident_memory", lambda: 2000)
    monkeypatch.setattr(devices, "process_state", lambda: SimpleNamespace(num_processes=16))
    assert devices.free_memory(torch.device("cpu")) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # eight machines
    assert devices.free_memory(torch.device("cpu")) == 500
