"""rmtrain serve: rewards of a model over HTTP."""

import importlib.util
import os
from pathlib import Path
from typing import Annotated

from typer import Option

from rmtrain.cli import options
from rmtrain.cli.checkpoints import choose
from rmtrain.cli.display import TerminalDisplay
from rmtrain.errors import InputError
from rmtrain.scoring.scorer import ScoringOptions

TOKEN = "RMTRAIN_SERVE_TOKEN"  # the environment variable; `rmtrain score --url` reads it too


def serve(
    ckpt: options.Ckpt = None,
    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0 listens on all network interfaces.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    device: Annotated[
        str | None, Option(help="Device, such as cuda:1 or cpu; default: the first GPU, or the CPU.")
    ] = None,
    prompt: options.Prompt = None,
    label: options.Label = None,
    calibrated: options.Calibrated = False,
    max_length: options.MaxLength = None,
    dtype: options.Dtype = None,
    tokens_per_batch: options.Tokens = None,
    wait_ms: Annotated[
        float, Option(min=0, max=1000, help="How long to wait for further requests to fill a batch.")
    ] = 3.0,
    max_queue: Annotated[
        int, Option(min=1, help="Maximum waiting completions; further requests get status 429.")
    ] = 8192,
    max_body_mib: Annotated[int, Option(min=1, max=1024, help="Maximum size of a request body.")] = 8,
    no_verify: options.NoVerify = False,
    runs: options.Runs = Path("runs"),
) -> None:
    """Serve rewards over HTTP to OpenRLHF, verl, LLaMA-Factory and slime, or by the APIs of vLLM and SGLang.

    With RMTRAIN_SERVE_TOKEN in the environment, clients must send it as a bearer token. Ctrl-C stops the server once
    running requests are answered.

    [dim]rmtrain serve --ckpt runs/mistral_lora-20260101-120000-ab12 --port 8000[/]
    """
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"serve needs {' and '.join(missing)}", "install them: pip install fastapi uvicorn")
    from rmtrain.serving.app import ServerLimits
    from rmtrain.serving.batcher import BatchLimits
    from rmtrain.serving.online import OnlineScorer
    from rmtrain.serving.server import is_loopback, listen
    from rmtrain.serving.server import serve as run

    display = TerminalDisplay()
    with listen(host, port) as listener:  # a taken port is refused before the model is loaded
        scoring = ScoringOptions(prompt=prompt, label=label, max_length=max_length, dtype=dtype, calibrated=calibrated)
        ref = choose(ckpt, runs, display, scoring)
        scorer = OnlineScorer.open(ref.where, scoring, device, tokens_per_batch, not no_verify)
        token = os.environ.get(TOKEN, "").strip()
        limits = ServerLimits(
            BatchLimits(scorer.tokens_per_batch, wait_ms / 1000, max_queue), max_body_mib << 20, token
        )
        shown, bound = listener.getsockname()[:2]
        address = f"http://{f'[{shown}]' if ':' in shown else shown}:{bound}"
        if not token and not is_loopback(listener):
            display.note(f"anyone who reaches {address} can ask for rewards: set {TOKEN} to require a token")
        display.note(f"serving {scorer.name} at {address}; its API is described at {address}/docs; Ctrl-C stops it")
        run(scorer, limits, listener)
    display.note("stopped")
