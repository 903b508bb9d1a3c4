#!/bin/bash
# Check and measure the project on one GPU, offline: the tests that need one, a whole run, the speed, then the studies of studies.PLANNED.
#
#     timeout 400 bash benchmarks/gpu.sh NAME DATA
#
# NAME is part of the names of the records. DATA is a folder with copies of the data sets: imdb, banking77 and conll2003.
# Models are read from ./HuggingFaceTB/SmolLM2-135M-Instruct and ./sentence-transformers/all-mpnet-base-v2. Given again, the command
# continues: what has a record is not run again.
set -uo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1
name=$1 data=$2
mkdir -p outputs

if [ ! -e "outputs/tests-$name.log" ]; then
    python -m pytest -q -n 8 tests/test_gpu.py tests/test_four_bits.py tests/test_speedups.py tests/test_chat.py 2>&1 |
        tee outputs/tests.partial && mv outputs/tests.partial "outputs/tests-$name.log"
fi

if [ ! -e "results/run-$name.json" ]; then
    python fine_tune.py --preset full --dataset_name "$data/imdb" --run_name "gpu-$name" --resume_if_exists &&
        python evaluate.py "outputs/gpu-$name" && cp "outputs/gpu-$name/metrics.json" "results/run-$name.json"
fi

python benchmarks/speed.py --quick --rows 1600 --name "$name"

# The data sets side by side, two runs of each at a time: alone, one run leaves most of a GPU idle.
studies() {
    for study in "${@:2}"; do
        python benchmarks/quality.py --jobs 2 --dataset_name "$data/$1" "$study"
    done
}
export OMP_NUM_THREADS=1
studies imdb decoder-reviews-recipe &
studies banking77 decoder-intents-recipe decoder-intents &
studies conll2003 rank-entities-mpnet-neighbours decoder-entities-recipe decoder-entities &
wait
