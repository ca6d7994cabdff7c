"""`accelerate launch -m taia_hub.training recipe.yaml --out DIR`: `taia train` as a module, for several devices.

A program that nothing imports: this process becomes that of the command line.
"""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    runpy.run_module("taia_hub.cli", run_name="__main__")
