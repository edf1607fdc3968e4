"""Makes C++ for the CPU of a CUDA source: the emulation of Hopper's kernels compiles what this writes.

    python translate.py SOURCE TARGET

Three things of a kernel are not C++, and each becomes a call of the emulation (``machine/instructions.hpp``):

- an ``asm`` statement. Its one instruction is looked up in ``INSTRUCTIONS``; the function gets the operands in the
  order in which the instruction names them. Results are passed as references. An instruction that is not in the table
  is an error: nothing is passed over in silence.
- ``extern __shared__ char name[]``, the shared memory of a launch.
- ``kernel<<<grid, block, bytes, stream>>>(arguments)``.

Unnamed namespaces get a name: that of a kernel in it can then be found by its address, for messages and tests.
Line numbers stay as they are, so that messages of the compiler and of a debugger point into the kernel.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

NAMESPACE = "::fdma::emulation::"

# Instructions of the PTX ISA and the function that does what they say. None: they order or announce what the emulation
# has in order anyway.
INSTRUCTIONS: dict[str, str | None] = {
    # Named barriers and mbarriers
    "bar.sync": "barrier_sync",
    "bar.arrive": "barrier_arrive",
    "mbarrier.init.shared::cta.b64": "mbarrier_init",
    "mbarrier.arrive.shared::cta.b64": "mbarrier_arrive",
    "mbarrier.arrive.expect_tx.shared::cta.b64": "mbarrier_arrive_expect",
    "cp.async.mbarrier.arrive.noinc.shared::cta.b64": "mbarrier_arrive_after_copies",
    "mbarrier.try_wait.parity.shared::cta.b64": "mbarrier_wait",
    # Copy engine
    "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint": "load_box",
    "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group": "store_box",
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes": "load_bytes",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32": "add_floats",
    "cp.async.bulk.commit_group": "commit_stores",
    "cp.async.bulk.wait_group": "wait_stores",
    "cp.async.bulk.wait_group.read": "wait_stores_read",
    # Copies of a thread
    "cp.async.cg.shared.global": "copy_async",
    "cp.async.ca.shared.global": "copy_async",
    # Shared memory
    "ld.shared.b32": "load_shared",
    "ld.shared.v2.f32": "load_shared",
    "ld.shared.v4.b32": "load_shared",
    "ld.shared.v4.f32": "load_shared",
    "ld.shared.v4.s32": "load_shared",
    "st.shared.b32": "store_shared",
    "st.shared.v4.b32": "store_shared",
    "st.shared.v4.f32": "store_shared",
    "ldmatrix.sync.aligned.x4.m8n8.shared.b16": "load_matrix",
    "ldmatrix.sync.aligned.x4.trans.m8n8.shared.b16": "load_matrix_transposed",
    "stmatrix.sync.aligned.x4.m8n8.shared.b16": "store_matrix",
    "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16": "store_matrix_transposed",
    # Global memory
    "ld.acquire.gpu.global.s32": "load_acquire",
    "red.release.gpu.global.add.s32": "reduce_add",
    "red.release.gpu.global.max.s32": "reduce_max",
    "red.global.add.v4.f32": "reduce_add",
    # Arithmetic
    "ex2.approx.ftz.f32": "exp2_approx",
    "lg2.approx.ftz.f32": "log2_approx",
    # Proxies
    "fence.mbarrier_init.release.cluster": "publish_barriers",
    "fence.proxy.async.shared::cta": "fence_async",
    # Hints and register counts
    "prefetch.tensormap": None,
    "setmaxnreg.inc.sync.aligned.u32": None,
    "setmaxnreg.dec.sync.aligned.u32": None,
}

# A loop around an instruction that tries: the function waits.
TRY_LOOP = re.compile(r"\{ \.reg \.pred done; again: (\S+) done, (.*?); @done bra over; bra again; over: \}")

ASM = re.compile(r"\basm\b(?:\s+volatile)?\s*\(")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
OPERAND = re.compile(r'\s*"[^"]*"\s*\((.*)\)\s*', re.DOTALL)
SHARED_MEMORY = re.compile(r"\bextern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];")
UNNAMED = re.compile(r"\bnamespace \{")
LAUNCH = re.compile(r"\b(\w+)<<<(.*?)>>>\(", re.DOTALL)


class TranslationError(Exception):
    """What stands in a source is not among the things that are emulated."""


def split_top_level(text: str, separator: str) -> list[str]:
    """Parts of `text` between separators that are outside of strings and brackets."""
    parts = [""]
    depth = 0
    quoted = False
    position = 0
    while position < len(text):
        char = text[position]
        if quoted and char == "\\":
            parts[-1] += char
            position += 1
            char = text[position]
        elif char == '"':
            quoted = not quoted
        elif not quoted and char in "([{":
            depth += 1
        elif not quoted and char in ")]}":
            depth -= 1
        if char == separator and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += char
        position += 1
    return parts


def end_of_statement(source: str, begin: int) -> int:
    """Position of the bracket that closes the one before `begin`."""
    depth = 1
    quoted = False
    position = begin
    while True:
        char = source[position]
        if quoted and char == "\\":
            position += 1
        elif char == '"':
            quoted = not quoted
        elif not quoted and char == "(":
            depth += 1
        elif not quoted and char == ")":
            depth -= 1
            if depth == 0:
                return position
        position += 1


def parse_asm(body: str) -> tuple[str, list[str]]:
    """Template of an asm statement, white space collapsed, and the C++ expressions of its operands %0, %1 and so on."""
    sections = split_top_level(body, ":")
    template = "".join(STRING.findall(sections[0])).replace("\\n", " ").replace("\\t", " ")
    operands = []
    for section in sections[1:3]:  # outputs, inputs; clobbers follow
        for operand in split_top_level(section, ",") if section.strip() else []:
            match = OPERAND.fullmatch(operand)
            if match is None:
                raise TranslationError(f"operand '{operand.strip()}' of '{template}'")
            operands.append(match[1])
    return " ".join(template.split()), operands


def call_of(template: str, operands: list[str]) -> str:
    """The call that does what an asm statement says."""
    if not template:
        return "static_cast<void>(0)"  # the statement was for the compiler
    loop = TRY_LOOP.fullmatch(template)
    name, _, rest = template.rstrip("; ").partition(" ") if loop is None else (loop[1], "", loop[2])
    if ";" in rest or name not in INSTRUCTIONS:
        raise TranslationError(f"'{template}' is not emulated: add its instruction to INSTRUCTIONS in {Path(__file__)}")
    function = INSTRUCTIONS[name]
    if function is None:
        return "static_cast<void>(0)"
    names = [operand for operand in re.sub(r"[\[\]{},]", " ", rest).split() if operand != "_"]
    arguments = [f"({operands[int(name[1:])]})" if name.startswith("%") else name for name in names]
    return f"{NAMESPACE}{function}({', '.join(arguments)})"


def translate(source: str, name: str) -> str:
    """C++ of a CUDA source, the file `name`."""
    translated = ""
    position = 0
    match = ASM.search(source)
    while match is not None:
        end = end_of_statement(source, match.end())
        call = call_of(*parse_asm(source[match.end() : end]))
        lines = source.count("\n", match.start(), end) - call.count("\n")
        translated += source[position : match.start()] + call + "\n" * lines
        position = end + 1
        match = ASM.search(source, position)
    translated += source[position:]
    translated = SHARED_MEMORY.sub(rf"\1* const \2 = static_cast<\1*>({NAMESPACE}dynamic_shared_memory());", translated)
    translated = LAUNCH.sub(rf'{NAMESPACE}LaunchOf{{"\1", \1, {{\2}}}}(', translated)
    translated = UNNAMED.sub(f"inline namespace of_{name} {{", translated)
    # As a macro it would be in the way of the attribute that the standard library writes with the same name.
    return translated.replace("__noinline__", "__attribute__((noinline))")


def main() -> None:
    """Translate one file."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        text = translate(source.read_text(encoding="utf-8"), source.stem)
    except TranslationError as error:
        sys.exit(f"{source}: {error}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
