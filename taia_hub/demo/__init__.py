"""The demo: fine-tune a small model on one domain, publish it to a Hub on this disk, load it and compare its modes.

`samples.py` is the shipped data, `base.py` the base model, `training.py` the adapter, `evaluation.py` the losses,
`report.py` what is shown, `stages.py` the demo itself and `runner.py` the process that it runs in.
"""

from taia_hub.demo.report import DemoReport
from taia_hub.demo.runner import run_demo

__all__ = ["DemoReport", "run_demo"]
