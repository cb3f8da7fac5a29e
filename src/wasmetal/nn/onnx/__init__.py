"""ONNX models on ONNX Runtime's CPU provider: the extra ``wasmetal[onnx]``."""
