"""litserve on one graph, for benchmarks/serving.py: python serve_litserve.py GRAPH PORT.

It reads annotations as they are, so they are not put off here.
"""

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime


class MiniLM(litserve.LitAPI):  # type: ignore[misc]  # it is not installed where types are checked
    """Batches of at most eight, gathered for 2 ms, in a worker process."""

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(sys.argv[1], options)

    def decode_request(self, request: dict[str, Any]) -> Any:
        [tensor] = request["inputs"]
        return np.array(tensor["data"], np.int64).reshape(tensor["shape"])

    def batch(self, inputs: list[Any]) -> Any:
        return np.concatenate(inputs)

    def predict(self, ids: Any) -> Any:
        return self._session.run(None, {"input_ids": ids})[0]

    def unbatch(self, output: Any) -> list[Any]:
        return list(output[:, None])

    def encode_response(self, output: Any) -> dict[str, Any]:
        shape = list(output.shape)
        tensor = {"name": "embedding", "datatype": "FP32", "shape": shape, "data": output.ravel().tolist()}
        return {"outputs": [tensor]}


if __name__ == "__main__":
    server = litserve.LitServer(MiniLM(max_batch_size=8, batch_timeout=0.002), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
