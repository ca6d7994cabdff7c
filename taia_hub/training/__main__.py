"""`accelerate launch -m taia_hub.training recipe.yaml --out DIR`: `taia train` as a module, for several devices."""

import sys

from taia_hub.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
