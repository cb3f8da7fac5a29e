"""TensorFlow Lite models on LiteRT's interpreter: the extra ``wasmetal[tflite]``."""
