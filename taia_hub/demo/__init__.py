"""The demo: fine-tune a small model on one domain, publish it to a Hub on this disk, load it and compare its modes.

A folder comes in; a `DemoReport` goes out. It trains as `taia train` does, publishes to a loopback Hub of its own, and
may import every room below this one: `stages.py` is the demo, `runner.py` the process that it runs in.
"""

from taia_hub.demo.report import DemoReport
from taia_hub.demo.runner import run_demo

__all__ = ["DemoReport", "run_demo"]
