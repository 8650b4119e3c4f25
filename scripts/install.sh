#!/usr/bin/env bash
# Make .venv (or $RMTRAIN_VENV) with rmtrain in it, at tested versions. Run again, it does only what is missing.
#   scripts/install.sh           what a user needs
#   scripts/install.sh serve     with what `rmtrain serve` needs
#   scripts/install.sh test      with what the tests need
set -euo pipefail
cd "$(dirname "$0")/.."

extra=${1:-}
venv=${RMTRAIN_VENV:-.venv}
python=""
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  echo "error: Python 3.11 or later is needed" >&2
  echo "  hint: install it, or name it: PYTHON=/path/to/python3.11 $0" >&2
  exit 2
fi

stamp="$venv/.rmtrain-${extra:-user}"
wanted=$(cat pyproject.toml scripts/constraints.txt scripts/install.sh | sha256sum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

echo "installing into $venv (a few minutes the first time)" >&2
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --constraint scripts/constraints.txt)
"${pip[@]}" "torch==2.13.0"  # first and pinned: any other package would pull a newer build beside it
"${pip[@]}" --editable ".${extra:+[$extra]}"
# as pip would, file after file, but on all cores; some files are for other versions of Python
"$venv/bin/python" -m compileall -qq -j 0 "$venv/lib" || true
echo "$wanted" > "$stamp"
