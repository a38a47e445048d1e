#!/usr/bin/env bash
# The checks of kit.py, then the benchmark of experiments/shared_prefix.md at Qwen2.5-Omni-7B's size with random weights,
# on one GPU of 80 GB or more. The machine needs PyTorch, the torchvision of that PyTorch, NumPy, and no network.
#
#   experiments/gpu/run.sh wheels          with a network: collect the other packages in .wheels/, for another Python with
#                                          PYTHON=3.12, and only those that the machine lacks with PACKAGES="trl peft …"
#   experiments/gpu/run.sh run [folder]    on the GPU machine: the checks (10 minutes at most); JSON and a page in the folder
#   experiments/gpu/run.sh benchmark [folder]   then, if there is time, the benchmark: another 10 minutes
#
# DEVICE=cpu tries the same commands on a CPU, at small size.
set -euo pipefail
cd "$(dirname "$0")/../.."

all="packaging pyyaml regex tqdm requests urllib3 idna certifi charset-normalizer httpx2 httpcore2 truststore h11 anyio typer
  click shellingham annotated-types annotated-doc pydantic pydantic-core typing-inspection hf-xet fsspec aiohttp
  aiohappyeyeballs aiosignal attrs frozenlist multidict propcache yarl
  transformers tokenizers huggingface-hub safetensors trl hydra-core omegaconf antlr4-python3-runtime peft accelerate
  datasets pandas pyarrow dill multiprocess xxhash psutil rich markdown-it-py mdurl pygments filelock pillow
  soundfile soxr cffi pycparser matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six scipy av
  jinja2 markupsafe"
read -r -d '' -a packages <<<"${PACKAGES:-$all}" || true
device=${DEVICE:-cuda} out=${2:-outputs/gpu}

# Packages that are not installed, or are older, come from .wheels/.
with_wheels() {
  libs=$(mktemp -d)
  trap 'rm -rf "$libs"' EXIT
  shopt -s nullglob
  for wheel in .wheels/*.whl; do
    IFS=- read -r name version _ <<<"$(basename "$wheel")"
    python3 -c "import importlib.metadata as m
from packaging.version import Version as V
assert V(m.version('$name')) >= V('$version')" 2>/dev/null ||
      python3 -m pip install --quiet --no-index --no-deps --target "$libs" "$wheel"
  done
  export PYTHONPATH="$libs:$PWD" HF_HUB_OFFLINE=1 DEVICE="$device"
}

benchmark() {
  python3 -m echoink.benchmark device="$device" hydra.run.dir="$out/$1" "${@:2}" 2>&1 | tee "$out/$1.txt"
}

case "${1:-}" in
  wheels)
    for name in "${packages[@]}"; do
      if [ -z "${PYTHON:-}" ] || [ "$name" = antlr4-python3-runtime ]; then # it has no wheel, and no compiled part
        pip wheel --quiet --no-deps -w .wheels -c constraints.txt "$name"
      else
        pip download --quiet --no-deps --only-binary=:all: --python-version "$PYTHON" -d .wheels -c constraints.txt \
          $(printf -- '--platform manylinux_2_%s_x86_64 ' 39 35 34 31 28 27 26 24 17) --platform manylinux2014_x86_64 \
          --platform manylinux1_x86_64 "$name"
      fi
    done
    du -sh .wheels
    ;;
  run)
    with_wheels
    { nvidia-smi; df -h /dev/shm; } 2>&1 || true # a failure here must not end the script
    python3 experiments/gpu/kit.py output="$out"
    ;;
  benchmark)
    with_wheels
    mkdir -p "$out"
    benchmark small growth=false
    benchmark small_lora growth=false lora=true
    if [ "$device" = cuda ]; then
      benchmark qwen2_5_omni_7b shape=qwen2_5_omni_7b lora=true peak_tflops=989 repeats=3 growth=false
      benchmark qwen2_5_omni_7b_growth shape=qwen2_5_omni_7b lora=true shape.prompts=1 repeats=1
    fi
    ;;
  *)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
