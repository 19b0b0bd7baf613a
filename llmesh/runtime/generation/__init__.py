"""Text generation inside the worker: an own decode loop over onnxruntime, with continuous batching."""
