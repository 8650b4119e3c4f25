"""Processes that compare or share values join their group first, whichever function is the first to ask."""

import os
import socket
import subprocess
import sys

import pytest
import warm

FIRST = {
    "require_agreement": ("devices.require_agreement('same', 'rows')", "None"),
    "gather_values": ("devices.gather_values([rank])", "[0, 1]"),
    "value_of_main": ("devices.value_of_main(rank)", "0"),
    "read_partial": ("partial.read_partial(None, lambda value: None)", "{}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)
def test_the_first_call_joins_the_group(first: str) -> None:
    call, answer = FIRST[first]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = (
        "import os; from rmtrain.model import devices; from rmtrain.scoring import partial\n"
        f"rank = int(os.environ['RANK']); found = {call}; state = devices.process_state()\n"
        "print(found, state.process_index, state.num_processes)"
    )
    ranks = [
        warm.Popen(
            [sys.executable, "-c", script],
            env={
                **os.environ,
                "CUDA_VISIBLE_DEVICES": "",
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [process.communicate(timeout=240)[0].strip() for process in ranks]
    assert told == [f"{answer} 0 2", f"{answer} 1 2"]
