"""Which block sizes suit the Triton routing kernels?

    python benchmarks/blocks.py                          # the sizes that the kernels take, and some that they do not
    python benchmarks/blocks.py --sizes 8x16 --blocks 32x16 16x8 --capability 80

Registers, spills and shared memory as the compiler says, on any machine with Triton; on a CUDA device the largest error
and the times of three routing iterations and of their gradients as well, in turns, at the size of the full CapsNet.
Sizes are D_in x D_out, blocks images x capsules.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import triton
import triton.backends.nvidia
from model_speed import in_turns
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from affbench.base.progress import Progress
from affbench.models.kernels import routing_triton
from affbench.models.kernels.routing_fast import kernel_error

SIZES = ["8x16", "4x16", "2x16", "4x32", "2x64", "8x32", "16x16", "16x64"]
BLOCKS = ["32x16", "16x16", "32x8", "16x8"]
OUTPUTS, BATCH, CAPSULES = 10, 128, 4608
ARGUMENTS = {
    "_iterate": ("u w total partial", "batch count blocks"),
    "_backward": ("u w total grad_s grad_u grad_w", "batch count"),
}


def pair(text: str) -> tuple[int, int]:
    first, second = map(int, text.split("x"))
    return first, second


def compiled(kernel: str, size: tuple[int, int], block: tuple[int, int], capability: int) -> str:
    """What a thread of a kernel needs."""
    constants = dict(zip(("J", "D_IN", "D_OUT", "IMAGES", "CAPSULES"), (OUTPUTS, *size, *block), strict=True))
    pointers, numbers = (names.split() for names in ARGUMENTS[kernel])
    signature = dict.fromkeys(pointers, "*fp32") | dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(getattr(routing_triton, kernel), signature, constants)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assembler = Path(triton.backends.nvidia.__file__).parent / "bin" / "ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(made.asm["ptx"])
        file.flush()
        (architecture,) = re.findall(r"^\.target (\w+)", made.asm["ptx"], re.MULTILINE)
        command = [assembler, "-v", f"-arch={architecture}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (spilled,), (registers,) = (
        re.findall(pattern, said) for pattern in (r"(\d+) bytes spill stores", r"Used (\d+) reg")
    )
    return f"{int(spilled):,} bytes spilled, {registers} registers, {made.metadata.shared:,} bytes shared"


def in_blocks(block: tuple[int, int], run: Callable[[], Any]) -> Callable[[], Any]:
    def action() -> Any:
        with patch.object(routing_triton, "_IMAGES", block[0]), patch.object(routing_triton, "_CAPSULES", block[1]):
            return run()

    return action


def actions(size: tuple[int, int], blocks: list[tuple[int, int]], device: torch.device) -> Iterator[tuple[str, Any]]:
    in_dim, out_dim = size
    u = torch.randn(BATCH, in_dim, CAPSULES, device=device) * 0.3
    w = torch.randn(OUTPUTS, out_dim, in_dim, CAPSULES, device=device) * 0.1
    total, grad_s = torch.randn(2, OUTPUTS, BATCH, out_dim, device=device) * 0.1
    for block in blocks:
        yield f"{block} route", in_blocks(block, lambda: routing_triton.route(u, w, total, 3))
        yield f"{block} backward", in_blocks(block, lambda: routing_triton.backward(u, w, total, grad_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=pair, default=[pair(text) for text in SIZES])
    parser.add_argument("--blocks", nargs="+", type=pair, default=[pair(text) for text in BLOCKS])
    parser.add_argument("--capability", type=int, default=90)
    options = parser.parse_args()
    device = torch.device("cuda") if torch.cuda.is_available() else None
    if device is not None:
        options.capability = int("".join(map(str, torch.cuda.get_device_capability(device))))
    for size in options.sizes:
        taken = "" if routing_triton.fits(*size, torch.float32) else " (the kernels are not used)"
        print(f"matrices {size[0]} × {size[1]}{taken}, compute capability {options.capability / 10}", flush=True)
        times = {} if device is None else in_turns(dict(actions(size, options.blocks, device)), 20, device, Progress())
        for block in options.blocks:
            print(f"  {block[0]} images × {block[1]} capsules", flush=True)
            for kernel in ARGUMENTS:
                print(f"    {kernel[1:]}: {compiled(kernel, size, block, options.capability)}", flush=True)
            if device is not None:
                error = in_blocks(block, lambda: kernel_error(routing_triton, device))()
                route, backward = (1e3 * median(times[f"{block} {name}"]) for name in ("route", "backward"))
                print(f"    three iterations {route:.2f} ms, gradients {backward:.2f} ms, error {error:.0e} at 8 × 16")


if __name__ == "__main__":
    main()
