#!/usr/bin/env bash
# The benchmark of experiments/shared_prefix.md at Qwen2.5-Omni-7B's size, random weights, on one GPU of 80 GB or more
# that has PyTorch and transformers (versions as in constraints.txt) and may lack the rest and a network.
#
#   experiments/shared_prefix_gpu.sh wheels          with a network: collect the small packages in .wheels/
#   experiments/shared_prefix_gpu.sh run [folder]    on the GPU machine: kernels first, then the 7B shape; JSON to folder
#
# DEVICE=cpu tries the same commands on a CPU, at the small shape only.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(trl hydra-core omegaconf antlr4-python3-runtime peft accelerate datasets pyarrow dill multiprocess xxhash
  psutil rich markdown-it-py mdurl pygments filelock pillow soundfile soxr cffi pycparser matplotlib contourpy cycler
  fonttools kiwisolver pyparsing python-dateutil six)

case "${1:-}" in
  wheels)
    pip wheel --quiet --no-deps -w .wheels -c constraints.txt "${packages[@]}"
    du -sh .wheels
    ;;
  run)
    device=${DEVICE:-cuda} out=${2:-outputs/shared_prefix_gpu}
    mkdir -p "$out"
    libs=$(mktemp -d)
    trap 'rm -rf "$libs"' EXIT
    shopt -s nullglob
    for wheel in .wheels/*.whl; do # only what is not there
      name=$(basename "$wheel" | cut -d- -f1)
      python -c "import importlib.metadata as m; m.version('$name')" 2>/dev/null ||
        pip install --quiet --no-index --no-deps --target "$libs" "$wheel"
    done
    export PYTHONPATH="$libs:$PWD" HF_HUB_OFFLINE=1
    benchmark() { python -m echoink.benchmark device="$device" hydra.run.dir="$out/$1" "${@:2}" 2>&1 | tee "$out/$1.txt"; }
    benchmark small growth=false
    benchmark small_lora growth=false lora=true
    if [ "$device" = cuda ]; then
      benchmark qwen2_5_omni_7b shape=qwen2_5_omni_7b lora=true peak_tflops=989 repeats=3 growth=false
      benchmark qwen2_5_omni_7b_growth shape=qwen2_5_omni_7b lora=true shape.prompts=1 repeats=1
    fi
    ;;
  *)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
