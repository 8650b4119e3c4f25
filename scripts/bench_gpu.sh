#!/usr/bin/env bash
# All benchmarks on one GPU, with a randomly initialised Mistral-7B where no real one is named.
#   scripts/bench_gpu.sh PAIRS [MODEL] [OUTPUT]     PAIRS: any SOURCE of pairs with a split train, such as pairs.jsonl
set -euo pipefail
cd "$(dirname "$0")/.."

data=${1:?usage: scripts/bench_gpu.sh PAIRS [MODEL] [OUTPUT]}
model=${2:-models/mistral-7b-random}
out=${3:-bench}
python="${RMTRAIN_VENV:-.venv}/bin/python"
[ -x "$python" ] || python=python3
"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "bench_gpu.sh: torch finds no GPU here")'
mkdir -p "$out"
if [ ! -f "$model/config.json" ]; then
  "$python" scripts/random_model.py --tokenizer models/smollm2-135m-instruct --output "$model"
fi
common=(--model "$model" --dtype bfloat16 --rank 32 --max-length 2048)
"$python" -m pytest -q -m gpu
"$python" scripts/bench_training.py "${common[@]}" --data "$data" --steps 8 --json "$out/training_pairs.json"
"$python" scripts/bench_training.py "${common[@]}" --data "$data" --steps 8 --ways 4 --groups 4 \
  --json "$out/training_four.json"
"$python" scripts/bench_training.py "${common[@]}" --data "$data" --steps 8 --groups 24 --sides rmtrain \
  --json "$out/training_large.json"  # 8 pairs are few tokens for a GPU: the share of the matrix rate is read here
"$python" scripts/bench_scoring.py --model "$model" --dtype bfloat16 --data "$data" --limit 800 \
  --tokens-per-batch 32768 --json "$out/scoring.json"
"$python" scripts/bench_sharing.py --model "$model" --dtype bfloat16 --prompts 256 1024 --completion 256 \
  --plot "$out/sharing.svg" --json "$out/sharing.json"
"$python" scripts/profile_step.py "${common[@]}" --data "$data" --json "$out/profile.json"
