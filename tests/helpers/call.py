"""`python -m helpers.call MODULE FUNCTION ARGUMENTS`: call a function of a module, with arguments written in JSON."""

import importlib
import json
import sys

if __name__ == "__main__":
    module, function, arguments = sys.argv[1:]
    getattr(importlib.import_module(module), function)(*json.loads(arguments))
