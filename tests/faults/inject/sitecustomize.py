"""Imported at the start of every Python process that has this folder on its PYTHONPATH.

Without LINE_FAULTS it does nothing. With it, modules of the daemon and its camera processes are wrapped right
after they were imported, so that faults come from outside and no product file knows of them.
"""

import importlib
import importlib.abc
import importlib.machinery
import os
import sys

if os.environ.get("LINE_FAULTS"):
    # Where to wrap: module of the product or its libraries -> module of ours with wrap(module).
    CAMERA = {"inspectord.sources": "injected.camera", "harvesters.core": "injected.harvest"}
    DAEMON = {
        "inspectord.inspect": "injected.inference",
        "inspectord.examine": "injected.constants",
        "inspectord.daemon": "injected.daemon",
    }

    class Wrapping(importlib.abc.Loader):
        def __init__(self, loader, wrapper):
            self._loader, self._wrapper = loader, wrapper

        def create_module(self, spec):
            return self._loader.create_module(spec)

        def exec_module(self, module):
            self._loader.exec_module(module)
            importlib.import_module(self._wrapper).wrap(module)

    class Finder(importlib.abc.MetaPathFinder):
        def __init__(self, wrappers):
            self._wrappers = wrappers

        def find_spec(self, name, path=None, target=None):
            wrapper = self._wrappers.get(name)
            spec = importlib.machinery.PathFinder.find_spec(name, path) if wrapper else None
            if spec is not None and spec.loader is not None:
                spec.loader = Wrapping(spec.loader, wrapper)
            return spec

    if "inspectord.acquire" in sys.orig_argv:
        sys.meta_path.insert(0, Finder(CAMERA))
    elif "inspectord" in sys.orig_argv and "run" in sys.orig_argv:
        sys.meta_path.insert(0, Finder(DAEMON))
