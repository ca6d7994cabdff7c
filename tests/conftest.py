"""Caches and tokens of the tests lie in a scratch folder; the loopback Hub and small models are made once."""

import os
import tempfile

_SCRATCH = tempfile.mkdtemp(prefix="taia-tests-")
os.environ.update({"HF_HOME": f"{_SCRATCH}/hf", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"})
for _name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
    os.environ.pop(_name, None)
