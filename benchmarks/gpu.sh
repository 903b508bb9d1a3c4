#!/bin/bash
# Check and measure the project on one GPU, offline: what only a GPU shows first, then a run, then speed.
#
#     bash benchmarks/gpu.sh NAME IMDB      NAME: of the records; IMDB: folder with train.parquet and test.parquet
#
# It leaves results/run-NAME.json and results/gpu-NAME.json. A part whose record exists is not run again.
set -uo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1
name=$1 imdb=$2

python -m pytest -q -n 8 tests/test_gpu.py tests/test_four_bits.py tests/test_speedups.py tests/test_chat.py

if [ ! -e "results/run-$name.json" ]; then
    python fine_tune.py --preset full --dataset_name "$imdb" --run_name "gpu-$name" &&
        python evaluate.py "outputs/gpu-$name" && cp "outputs/gpu-$name/metrics.json" "results/run-$name.json"
fi

if [ ! -e "results/gpu-$name.json" ]; then
    python benchmarks/speed.py --device cuda --quick --rows 1600 --name "$name"
fi
