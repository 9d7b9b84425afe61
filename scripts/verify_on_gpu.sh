#!/usr/bin/env bash
# All that needs a GPU, on a machine that has one: build the engines, compare them with ONNX Runtime, time both.
#
#     scripts/verify_on_gpu.sh BUNDLE VIDEO [OUT.json]
#
# Wants tvau-edge with TensorRT 10.3 to 11.x in the Python that runs it (PYTHON, default python3), an NVIDIA driver,
# and CUDA's runtime. Writes OUT.json, a run that `tvau bench report` and `compare` read (schema tvau.bench/1, vision and
# RAE, TensorRT beside the bundle's other graphs), and OUT.agreement.json with the engines and how they agree with
# ONNX Runtime; exit status 1 when something does not agree. Engines go to a folder of their own, so nothing that is
# there is used or lost. BATCH (default 4) is the engines' largest batch: rows of 8 and 16 patches need 16, and memory
# for them. ROUNDS: fresh processes per row, default 5.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,13s/^# \{0,1\}//p' "$0"
    exit 2
fi
bundle=$1 video=$2 out=${3:-verify_on_gpu.json}
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" - <<'PYTHON'
from tvau_edge.runtime.backends.cuda import Cuda
from tvau_edge.runtime.backends.tensorrt import open_tensorrt
from tvau_edge.runtime.errors import TvauError
try:
    free, total = Cuda().memory()
    print(f"TensorRT {open_tensorrt().__version__} on {Cuda().gpu()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
except TvauError as error:
    raise SystemExit(f"error: {error}") from None
PYTHON

# The graphs themselves first, by the rules of TensorRT that can be read off them, where the check is installed.
if "$python" -c 'import tvau_edge.quantize.tensorrt_check' 2>/dev/null; then
    "$python" - "$bundle" <<'PYTHON' | while read -r graph; do
import sys
from pathlib import Path
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.engines.build import graphs_to_build
bundle = Bundle.open(Path(sys.argv[1]), verify=False)
print(*(bundle.file(graph.file) for graph in graphs_to_build(bundle)), sep="\n")
PYTHON
        "$python" -m tvau_edge.runtime.cli doctor --tensorrt "$graph"
    done
fi

export TVAU_ENGINES=$work/engines
"$python" -m tvau_edge.runtime.cli engines build "$bundle" --batch "${BATCH:-4}" --json "$work/engines.json"
status=0
"$python" "$here/compare_backends.py" "$bundle" "$video" --json "$work/comparison.json" || status=$?
"$python" - "$work/engines.json" "$work/comparison.json" "${out%.json}.agreement.json" <<'PYTHON'
import json, sys
engines, comparison, out = sys.argv[1:]
with open(engines) as a, open(comparison) as b, open(out, "w") as file:
    json.dump({"schema": "tvau.gpu/1", "engines": json.load(a), "comparison": json.load(b)}, file, indent=2)
print(f"{out} written")
PYTHON
"$python" -m tvau_edge.runtime.cli bench "$bundle" --backend tensorrt --source "$video" --only vision,RAE \
    --rounds "${ROUNDS:-5}" --out "$out"
exit $status
