"""onnxruntime, told to tell nobody.

Its builds for Linux send events about each loaded model to Microsoft, and keep an id of the machine in the cache folder, since
1.29 and unless they are told otherwise before they are imported. Everything here that needs it takes it from this module.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

onnxruntime.disable_telemetry_events()  # where something else imported it before

__all__ = ["onnxruntime"]
