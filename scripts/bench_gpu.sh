#!/usr/bin/env bash
# One stage of the measurements on a GPU. A stage ends within eight minutes, and writes each result as soon as it has it.
#   scripts/bench_gpu.sh STAGE [--rehearse]
#
#   check      what this machine is, and the tests marked gpu
#   suite      all fast tests, on the GPU
#   train      7B, LoRA: rmtrain, the prompt twice, and TRL, all with recomputation, as TRL needs it
#   variants   7B, LoRA, nothing recomputed: as it comes, compiled layers, Liger, dropout, selective recomputation,
#              each for itself; a process takes 50 to 60 seconds, most of them before its first step (on an H200)
#   compile    compiled layers: how long compiling takes, when it is won back, and with recomputation
#   four       four answers a prompt
#   memory     predicted and measured peaks with 24, 40 and 80 GiB free
#   quantized  nf4 with 16 GiB free
#   scoring    800 preferences, against padded batches of 8
#   learn      a 135M model on PAIRS, with its accuracy on the held-out tenth; dtype and compile: auto
#   evidence   the runs of scripts/evidence.py that the file RUNS names, with the rows in DATA, several at a time
#   faults     killed, interrupted, out of memory and not finite: the tests of these, on the GPU
#   sharing    the gain over prompt lengths and numbers of answers
#   profile    where a step's time goes
#
# Environment: PAIRS (any SOURCE of pairs with a split train; default demo), MODEL (a 7B model's folder; default: a
# random one is made), SMALL (a small model's folder, default models/smollm2-135m-instruct; its tokenizer goes into the
# random model), RUNS and DATA (of evidence), WORKERS (processes at a time), OUT (default bench), REPEATS (of a
# comparison, default 2), RMTRAIN_PYTHON.
# --rehearse runs the stage on a CPU, with two layers and a few rows: what it prints is no measurement.
set -euo pipefail
cd "$(dirname "$0")/.."

stage=${1:-}
stages=$(sed -n 's/^#   \([a-z][a-z]*\)  .*/\1/p' "$0")
if ! grep -qx "$stage" <<< "$stages"; then
  echo "usage: scripts/bench_gpu.sh STAGE [--rehearse]; stages: $(tr '\n' ' ' <<< "$stages")" >&2
  exit 2
fi
rehearse=$([ "${2:-}" = --rehearse ] && echo yes || true)

pairs=${PAIRS:-demo}
small=${SMALL:-models/smollm2-135m-instruct}
model=${MODEL:-models/mistral-7b-random}
out=${OUT:-bench}
python=${RMTRAIN_PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTORCH_ALLOC_CONF=expandable_segments:True
mkdir -p "$out"

if [ -z "$rehearse" ]; then
  "$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "bench_gpu.sh: torch finds no GPU here")'
  shape=() steps=8 warmup=2 compiling=4 repeats=${REPEATS:-2} groups=16 length=2048 limit=800 tokens=32768
else
  model=${MODEL:-models/mistral-rehearsal}
  shape=(--hidden 256 --layers 2) steps=2 warmup=0 compiling=0 repeats=1 groups=4 length=256 limit=16 tokens=2048
  export RMTRAIN_REHEARSE_GPU=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
make_model() {
  [ -f "$model/config.json" ] ||
    "$python" scripts/random_model.py "${shape[@]}" --tokenizer "$small" --output "$model"
}
bench() {  # bench SCRIPT NAME OPTION ...: its figures go to $out/NAME.json
  local script=$1 name=$2
  shift 2
  "$python" "scripts/$script.py" --model "$model" --json "$out/$name.json" "$@"
}
training() {
  bench bench_training "$@" --data "$pairs" --dtype bfloat16 --rank 32 --max-length $length --steps $steps \
    --repeats $repeats
}
on_gpu=$([ -z "$rehearse" ] && echo yes || true)  # what a CPU can't run is left out of a rehearsal

case $stage in
  check)
    "$python" -m rmtrain doctor || true
    "$python" -m pytest -q -n "${WORKERS:-8}" -p no:benchmark -m gpu tests/model/test_gpu.py tests/training/test_gpu_training.py tests/training/test_throughput.py
    ;;
  suite)  # some tests need packages that such a machine may lack
    "$python" -m pytest -q -n "${WORKERS:-12}" --dist loadfile -m "not slow" --continue-on-collection-errors \
      ${rehearse:+tests/model/test_packing.py}
    ;;
  train)
    make_model
    training train_large --sides rmtrain --groups $groups --warmup $warmup  # first: the share of the matrix rate
    training train_pairs --recompute --groups 8 --warmup 1
    ;;
  variants)
    make_model
    for side in rmtrain compiled ${on_gpu:+liger} dropout selective; do  # each writes its own file
      training "variant_$side" --sides "$side" --groups $groups --warmup 2 --repeats 1
    done
    ;;
  compile)
    make_model
    bench bench_compile compile --dtype auto --data "$pairs" --rank 32 --max-length $length --groups 4 \
      --batches $((compiling + 6)) --warmup $((compiling + 1))
    training compiled_recomputed --sides rmtrain compiled --recompute --groups 8 --warmup $compiling --repeats 1
    ;;
  four)
    make_model
    training train_four --recompute --ways 4 --groups 4 --warmup 1
    ;;
  memory)
    make_model
    bench bench_memory memory --data "$pairs" --max-length $length --tokens $((tokens / 2)) --free 24 40 ${on_gpu:+80}
    ;;
  quantized)
    make_model
    bench bench_memory memory_nf4 --data "$pairs" --max-length $length --tokens 4096 --free 16 \
      ${on_gpu:+--quantization nf4 --optimizer paged_adamw_8bit}
    ;;
  scoring)
    make_model
    bench bench_scoring scoring --dtype bfloat16 --data "$pairs" --max-length $length --limit $limit \
      --tokens-per-batch $tokens --repeats $repeats
    ;;
  learn)
    steps=()
    [ -n "$on_gpu" ] || { make_model; small=$model steps=(optim.max_steps=2 "data.limit={train: 32}"); }
    "$python" -m rmtrain train configs/smollm2_135m.yaml "model.name=$small" model.dtype=auto model.compile=auto \
      "data.source={train: $pairs}" "data.holdout={validation: 0.05, test: 0.1}" "run.folder=$out/runs" "${steps[@]}" \
      --json > "$out/learn.json"
    ;;
  evidence)
    : "${RUNS:?a file with a line PROTOCOL/ARM:SEED for each run}" "${DATA:?the folder of the rows}"
    [ -z "$rehearse" ] || { make_model; small=$model; }
    mkdir -p "$out/evidence"
    # shellcheck disable=SC2016 # the inner shell reads its arguments
    xargs -P "${WORKERS:-8}" -I{} bash -c '
      place=$1/evidence/$(tr "/:" "__" <<< "$2")
      "$3" scripts/evidence.py run "$2" --data "$4" --model "$5" --work "$place" --results "$place/results" \
        > "$place.log" 2>&1 || { echo "$2 failed: $place.log"; exit 1; }
      flock "$1/evidence.lock" "$3" scripts/evidence.py merge "$place"/results/*.json --results "$1/evidence"
      echo "$2 done"' _ "$out" {} "$python" "$DATA" "$small" < "$RUNS"
    ;;
  faults)
    "$python" -m pytest -q -n "${WORKERS:-8}" --dist loadfile tests/training/test_resume.py \
      ${on_gpu:+tests/training/test_trainer.py tests/training/test_processes.py tests/training/test_failing_commands.py} \
      ${rehearse:+-m "not slow"}
    ;;
  sharing)
    make_model
    bench bench_sharing sharing --dtype bfloat16 --prompts 256 ${on_gpu:+1024} --ways 2 4 ${on_gpu:+8} --completion 256 \
      --repeats $repeats --plot "$out/sharing.svg"
    ;;
  profile)
    make_model
    bench profile_step profile --dtype bfloat16 --rank 32 --max-length $length --data "$pairs" --steps $steps
    ;;
esac
