#!/usr/bin/env bash
# The throughput benchmark on a GPU machine without network, in under 8 minutes:
#
#     tests/benchmarks/on_gpu.sh WHEELS OUT [options of throughput.py]
#
# The machine has torch and Python (PYTHON, or python3). WHEELS is a folder of wheels of all other packages (the
# extras `train` and `huggingface`), or "-" if they are installed. OUT gets a JSON file of each section, their
# tables and errors, the description of the machine, and the predictions of `kinemae pretrain cost`.
# Rehearsal on a CPU; SLOWDOWN multiplies the time limits:
#
#     SLOWDOWN=5 PYTHON=.venv/bin/python tests/benchmarks/on_gpu.sh - OUT --tiny
set -uo pipefail
[ $# -ge 2 ] || { sed -n '4p' "$0" >&2; exit 2; }
wheels=$1 && mkdir -p "$2" && out=$(realpath "$2") && shift 2
options=("$@")
[ "$wheels" = - ] || wheels=$(realpath "$wheels")
python=$(command -v "${PYTHON:-python3}") && python=$(realpath --no-symlinks "$python") || exit 2
cd "$(dirname "$0")/../.." || exit 2

if [ "$wheels" != - ]; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$out/packages" "$wheels"/*.whl || exit 1
fi
# The packages of the checkout as `kinemae.*`, without a build.
mkdir -p "$out/code/kinemae"
ln -sfn "$PWD"/kinemae/*.py "$PWD"/{configs,data_tools,finetune,launch,pretrain} "$out/code/kinemae"
export PYTHONPATH="$out/code:$PWD:$out/packages"

{ nvidia-smi; nproc; "$python" -c 'import torch; print(torch.__version__, torch.version.cuda)'; } \
    > "$out/machine.txt" 2>&1

failed=""
# section SECONDS NAME MINUTES: one section; a failure leaves the others.
section() {
    timeout $(($1 * ${SLOWDOWN:-1})) "$python" -m tests.benchmarks.throughput --only device "$2" --minutes "$3" \
        --json "$out/$2.json" "${options[@]}" > "$out/$2.txt" 2> "$out/$2.err" || failed="$failed $2"
    cat "$out/$2.txt"
}
section 110 run 1
section 80 engine 1
section 210 models 2
for recipe in kinemae_base_k400 videomae_large; do
    timeout $((30 * ${SLOWDOWN:-1})) "$python" -m kinemae pretrain cost "$recipe" --json \
        > "$out/cost-$recipe.json" 2> "$out/cost.err" || failed="$failed cost"
done
rm -rf "$out/code" "$out/packages"
if [ -n "$failed" ]; then
    echo "failed:$failed; the reasons are in $out/*.err" >&2
    exit 1
fi
