"""The device of the tests marked `gpu`: CUDA, or the CPU in a rehearsal (RMTRAIN_REHEARSE_GPU=1), else they skip."""

import os

import pytest
import torch

REHEARSAL = not torch.cuda.is_available() and os.environ.get("RMTRAIN_REHEARSE_GPU") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() and not REHEARSAL, reason="needs a CUDA device"),
]
