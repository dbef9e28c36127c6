"""Export a model: `python export.py weights=<run folder or file> format=onnx`.

Keys: `ExportRun` in zoo/settings.py.
"""

from zoo.cli import main

if __name__ == "__main__":
    main("export")
