"""mlserver on one graph, for benchmarks/serving.py: python serve_mlserver.py GRAPH PORT."""

from __future__ import annotations

import asyncio
import sys

import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class MiniLM(MLModel):  # type: ignore[misc]  # it is not installed where types are checked
    """Each request by itself, in the server's own process, which is its fastest for one model."""

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(sys.argv[1], options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        [found] = self._session.run(None, {"input_ids": NumpyCodec.decode_input(payload.inputs[0])})
        output = NumpyCodec.encode_output("embedding", found)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main() -> None:
    port = int(sys.argv[2])
    settings = Settings(
        host="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_endpoint=None, parallel_workers=0
    )
    await MLServer(settings).start([ModelSettings(name="minilm", implementation="serve_mlserver.MiniLM")])


if __name__ == "__main__":
    asyncio.run(main())
