"""A Space on which one prompt is answered by several modes of a TAIA model at once.

`taia space create` publishes it; `python app.py` runs it anywhere. TAIA_MODEL_ID and TAIA_REVISION name the model;
without them the page asks for one. `taia_hub.page.PageSettings` lists the other variables.
"""

import os

from taia_hub.page import launch_page
from taia_hub.page.devices import zero_gpu

zero_gpu()  # on ZeroGPU this must come before anything that initialises CUDA

if __name__ == "__main__":
    launch_page(token=os.environ.get("HF_TOKEN"))
