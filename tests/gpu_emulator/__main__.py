"""Run a program on the emulator: python -m gpu_emulator examples/static_vs_dynamic.py -c cudnn."""

import runpy
import sys
from pathlib import Path

import gpu_emulator

gpu_emulator.install()
sys.argv = sys.argv[1:]
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
runpy.run_path(sys.argv[0], run_name="__main__")
