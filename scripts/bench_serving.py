"""Throughput and latency of `rmtrain serve` under many clients, beside a server that scores one request at a time.

    python scripts/bench_serving.py --ckpt runs/quickstart-… --clients 64 --requests 640

Both sides are the same command; the other side's batches hold one request (`--tokens-per-batch 1 --wait-ms 0`). Each
client sends its next request once the last is answered. Of the workload `own`, a request is a prompt and one answer of
the demo data; of `shared`, one of 64 answers to long prompts, `--answers` to each, as clients send it that choose the
best of N. Sides take turns, each with a server of its own; loading is not counted, and each server is warmed up before.
Requests a second of the server's processor leave out what else the machine does meanwhile.
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from sides import Result, cpu_seconds, machine, ratios, shown, spread, take_turns, write_json

HEAD = b"POST /reward HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


WORKLOADS = ("own", "shared")
SHARED = 64  # answers of the workload `shared`
WARMING = 8  # requests before those that count


def requests(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The bodies of all requests."""
    from rmtrain.data.reader import read_source

    groups = read_source("demo", "train", evaluation=False).groups
    rows = [
        ([m.as_dict() for m in group.prompt], [m.as_dict() for m in answer])
        for group in groups
        for answer in group.completions
    ]
    if settings["workload"] == "shared":
        words, count = settings["words"], max(1, SHARED // settings["answers"])
        answers = itertools.cycle([answer for _, answer in rows])
        text = " ".join(message["content"] for prompt, _ in rows for message in prompt).split()
        long = [" ".join((text[i * words :] + text)[:words]) for i in range(count)]
        prompts = [[{"role": "user", "content": one}] for one in long]
        rows = [(prompt, next(answers)) for _ in range(SHARED // count) for prompt in prompts]
    return [
        {"messages": prompt, "completions": [answer]}
        for prompt, answer in itertools.islice(itertools.cycle(rows), settings["requests"])
    ]


def start(settings: dict[str, Any], *options: str) -> tuple[subprocess.Popen[str], str]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-m", "rmtrain", "serve", "--ckpt", settings["ckpt"], "--port", "0", *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    lines = []
    for line in server.stderr:
        lines.append(line)
        if " at http://" in line:
            return server, line.split(" at ")[1].split(";")[0]
    raise SystemExit("the server did not start:\n" + "".join(lines))


async def ask(address: str, bodies: list[dict[str, Any]], clients: int) -> tuple[list[float], list[float], float]:
    """Rewards, seconds of each request, and seconds in all; bare sockets leave the processor to the server."""
    rewards, seconds = [0.0] * len(bodies), [0.0] * len(bodies)
    left = iter(range(len(bodies)))
    host, port = address.removeprefix("http://").rsplit(":", 1)

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for number in left:
            body = json.dumps(bodies[number]).encode()
            begin = time.perf_counter()
            writer.write(HEAD % len(body) + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            text = await reader.readexactly(int(answer.split("content-length: ")[1].split()[0]))
            seconds[number] = time.perf_counter() - begin
            reply = json.loads(text)
            if reply["truncated"]:  # prompts that are cut differently are no longer shared
                raise SystemExit("a request is longer than the checkpoint reads: give fewer --words")
            rewards[number] = reply["rewards"][0]
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return rewards, seconds, time.perf_counter() - begin


def measure(settings: dict[str, Any], *options: str) -> Result:
    bodies = requests(settings)
    server, address = start(settings, *options)
    with server:  # closes its pipe and waits for its end
        try:
            asyncio.run(ask(address, bodies[:WARMING], settings["clients"]))
            before = cpu_seconds(server.pid)
            rewards, seconds, whole = asyncio.run(ask(address, bodies, settings["clients"]))
            busy = cpu_seconds(server.pid) - before
        finally:
            server.terminate()
    p50, p99 = (float(value) for value in np.percentile(seconds, [50, 99]))
    return {
        "rewards": rewards,
        "p50": p50,
        "p99": p99,
        "per_second": len(bodies) / whole,
        "per_cpu": len(bodies) / busy,
    }


def gathered(settings: dict[str, Any]) -> Result:
    return measure(settings)


def one_at_a_time(settings: dict[str, Any]) -> Result:
    return measure(settings, "--tokens-per-batch", "1", "--wait-ms", "0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="run folder or checkpoint folder")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=640, help="of all clients together")
    parser.add_argument("--workload", choices=WORKLOADS, default="own")
    parser.add_argument("--words", type=int, default=400, help="of a long prompt")
    parser.add_argument("--answers", type=int, choices=(1, 2, 4, 8, 16, 32, 64), default=8, help="to a long prompt")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    results = take_turns({"gathered": gathered, "one at a time": one_at_a_time}, settings, options.repeats)
    both = zip(results["gathered"][0]["rewards"], results["one at a time"][0]["rewards"], strict=True)
    difference = max(abs(a - b) for a, b in both)
    print(f"\n{options.requests} requests of {options.clients} clients, prompts {options.workload}; {machine()}")
    summary: dict[str, Any] = {"sides": {}, "reward_difference": difference}
    for name, runs in results.items():
        figures = {key: spread([run[key] for run in runs]) for key in ("per_second", "per_cpu", "p50", "p99")}
        summary["sides"][name] = figures
        latency = f"p50 {shown(figures['p50'], 3)} s, p99 {shown(figures['p99'], 3)} s"
        rates = f"{shown(figures['per_second'], 1)} requests/s, {shown(figures['per_cpu'], 1)} a processor's second"
        print(f"{name:<14} {rates}, {latency}")
    for key, told in (("per_second", "requests a second"), ("per_cpu", "requests a second of the server's processor")):
        rates = {name: [run[key] for run in runs] for name, runs in results.items()}
        summary[f"times_{key}"] = ratios(rates["gathered"], rates["one at a time"])
        print(f"gathered: {shown(summary[f'times_{key}'])} times the {told}")
    print(f"rewards differ by {difference:.1e} at most")
    kept = {
        name: [{key: value for key, value in run.items() if key != "rewards"} for run in runs]
        for name, runs in results.items()
    }
    write_json(options.json, options=settings, machine=machine(), **summary, runs=kept)


if __name__ == "__main__":
    main()
