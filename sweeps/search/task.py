"""The program that batch scripts of searches name which earlier versions wrote: sweeps.launch.task under its former name."""

import runpy

if __name__ == "__main__":
    runpy.run_module("sweeps.launch.task", run_name="__main__")
