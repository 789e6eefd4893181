"""Writes a trained model as ONNX, open to any batch and image size, and checks it in onnxruntime.

python tools/export_onnx.py CONFIG CHECKPOINT model.onnx
"""

from sn_mm.cli.export_onnx import main

if __name__ == '__main__':
    main()
