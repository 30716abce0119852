#!/usr/bin/env bash
# All measurements of jtrans on an NVIDIA GPU, each in a file of its own in OUT, a new folder:
#
#   benchmarks/gpu.sh [--small] OUT PYTORCH_PYTHON [IMAGES]
#
# PYTORCH_PYTHON is an interpreter with PyTorch for CUDA. IMAGES is a folder of photographs of two classes; without it
# the run at 224 pixels is left out. PYTHON names the interpreter with jtrans and JAX for CUDA, else it is `python`.
# --small tries every part at sizes that a CPU takes. A part that fails is named, and the others go on; the exit status
# is then 1.
set -uo pipefail

small=""
if [[ ${1-} == --small ]]; then
  small=yes
  shift
fi
if (($# < 2 || $# > 3)); then
  echo "usage: $0 [--small] OUT PYTORCH_PYTHON [IMAGES]" >&2
  exit 2
fi
out=$1 pytorch=$2 images=${3-}
here=$(dirname "$0") python=${PYTHON:-python}
mkdir "$out" || exit 2

if [[ $small ]]; then
  loop=mlp_deep:2:8 vmap=mlp_deep:2:8
  training=(--rounds=1 --product=64)
  convolutions=(--networks=1 --images=2 --rounds=1 "--layers=conv_a, 4")
  precision=(--models=mlp_deep --networks=2 --steps=2)
  placed=(mlp_deep)
  population=(--networks=4 --batch=8)
  busy=(--seconds=1)
  digits=(--config.num_networks=2 --config.num_steps=3 --config.num_examples=10)
  imagenet=(--config.data.image_size=32 "--config.widths.vgg11=(4, 4, 4, 4, 4, 4, 4, 4)" --config.batch_size=4
    --config.num_networks=2 --config.num_steps=3 --config.num_examples=4)
else
  loop=mlp_deep:64:128,conv_a:64:128,conv_b:64:32,resnet18:64:32 vmap=mlp_deep:64:128,conv_a:64:128
  training=(--rounds=20)
  convolutions=(--networks=64)
  precision=()
  placed=(mlp_deep conv_a resnet18)
  population=(--networks=64 --batch=128)
  busy=()
  digits=()
  imagenet=(--config.num_steps=10)
fi

failed=()
part() { # NAME COMMAND...
  echo "== $1"
  "${@:2}" 2>&1 | tee "$out/$1.txt" || failed+=("$1")
}

# Of the GPU's memory JAX takes three quarters at its start, unless told otherwise; here PyTorch needs its half.
against_pytorch() { # NAME STYLE ROWS
  part "$1" env XLA_CLIENT_MEM_FRACTION=.5 "$python" "$here/training.py" --pytorch_python="$pytorch" \
    --pytorch_style="$2" --rows="$3" --json="$out/$1.json" "${training[@]}"
}

early() { # NAME OPTION...; its log has the steps a second without compilation, and the memory
  part "$1" "$python" -m jtrans early --workdir="$out/$1" "${@:2}"
}

part versions "$python" -c "import json
from jtrans.harness import runtime
print(json.dumps(runtime.environment(), indent=2))"
part versions_pytorch "$pytorch" -c "import torch
print(torch.__version__, *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())), sep='; ')"
against_pytorch training loop "$loop"
against_pytorch training_vmap vmap "$vmap"
part convolutions "$python" "$here/convolutions.py" "${convolutions[@]}"
part precision "$python" "$here/precision.py" "${precision[@]}"
early digits --config=digits "${digits[@]}"
for model in "${placed[@]}"; do
  part "placement_$model" "$python" "$here/placement.py" --model="$model" "${population[@]}"
  part "busy_$model" "$python" "$here/busy.py" --model="$model" "${population[@]}" "${busy[@]}"
done
if [[ $images ]]; then
  early vgg11 --config=vgg11_imagenet --config.data.name=folder --config.data.dir="$images" "--config.data.classes=()" \
    "${imagenet[@]}"
else
  echo "vgg11 left out: no IMAGES given"
fi

if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
echo "all parts went well; results: $out"
