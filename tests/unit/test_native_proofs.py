"""Proofs of the C ring, and proof that each of them sees the fault it is there for.

Each program of tests/native is built with the ring as it is, and must pass; and with one fault planted into a copy of
ring.c, and must fail. ``MCHANNEL_VERIFY=1`` and ``MCHANNEL_FUZZ_SECONDS`` make the same proofs long.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import attrs
import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
VERIFY: Final = os.environ.get("MCHANNEL_VERIFY") == "1"
FUZZ_SECONDS: Final = int(os.environ.get("MCHANNEL_FUZZ_SECONDS", "8"))
CLANG: Final = next((c for c in ("clang", "clang-14", "clang-16", "clang-19") if shutil.which(c)), None)
COMPILER: Final = CLANG or shutil.which("cc")

pytestmark = pytest.mark.timeout(300)  # compilers and single steps, on a machine that may be busy
needs_clang = pytest.mark.skipif(CLANG is None, reason="install clang (Debian: clang-14 libclang-rt-14-dev)")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="install a C compiler (Debian: gcc libc6-dev)")
needs_spin = pytest.mark.skipif(not (shutil.which("spin") and shutil.which("cc")), reason="install spin and gcc")


@attrs.frozen
class Fault:
    """One wrong piece of ring.c in place of a right one."""

    name: str
    right: str
    wrong: str

    def __str__(self) -> str:
        return self.name


def build(folder: Path, program: str, flags: tuple[str, ...], fault: Fault | None = None) -> Path:
    source = (ROOT / "native" / "ring.c").read_text()
    if fault is not None:
        assert source.count(fault.right) == 1, "the fault no longer fits ring.c"
        source = source.replace(fault.right, fault.wrong)
    (folder / "ring.c").write_text(source)
    assert COMPILER is not None
    common = ("-std=c11", "-D_GNU_SOURCE", "-g", "-pthread", "-I", str(ROOT / "native"))
    made = folder / program
    sources = (ROOT / "tests" / "native" / f"{program}.c", folder / "ring.c")
    subprocess.run([COMPILER, *common, *flags, *sources, "-o", made], check=True, timeout=250)
    return made


def run(made: Path, *arguments: str, timeout: float = 250) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # by way of a small process: a child counts the memory of its parent as its own peak
        ["timeout", str(timeout), made, *arguments],
        cwd=made.parent,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout + 10,
        check=False,
        env={"PATH": os.defpath, "TSAN_OPTIONS": "exitcode=66 halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"},
    )


# ---- a hostile peer

FUZZER: Final = ("-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
LIMITS: Final = ("-timeout=5", "-rss_limit_mb=1024", "-max_len=512", "-print_final_stats=0")


SEEDS: Final = {
    "one record changes its length": "08 00000001 0ff0 0010 0035 0000 0000 0038 0000 0000",
    "one chunk changes its place": "08 00000001 0000 0018 0050 0000 0100 0050 0ff0 0100",
    "records under attack": "02 00000001 0140 04 0140 05 0140 06 0140 07 0140 04",
    "nearly right records": "04 00000007 01ff 04 05 06 07 04 05",
    "a head out of range": "01 00000001 0403e8 0403e8 0001 0000100000000000 0403e8 0403e8 0403e8 0403e8",
    "a tail out of range": "00 00000001 0000 0000000000008000 04",
}
"""What the fuzzer starts from, as hex: the mode, a seed, then operations (tests/native/fuzz_ring.c)."""


def fuzz(made: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    corpus = made.parent / "corpus"
    corpus.mkdir()
    for name, seed in SEEDS.items():
        (corpus / name.replace(" ", "-")).write_bytes(bytes.fromhex(seed))
    return run(made, *LIMITS, f"-max_total_time={seconds}", "corpus", timeout=seconds + 60)


@needs_clang
@pytest.mark.timeout(FUZZ_SECONDS + 110)
def test_no_hostile_peer_leads_the_ring_outside_its_memory(tmp_path: Path) -> None:
    result = fuzz(build(tmp_path, "fuzz_ring", FUZZER), FUZZ_SECONDS)
    assert result.returncode == 0, result.stderr[-4000:]
    done = re.search(r"Done (\d+) runs", result.stderr)
    assert done is not None
    assert int(done[1]) > 1000


@needs_clang
@pytest.mark.parametrize(
    "fault",
    [
        Fault("record over the end", "size > tail - index || size > room", "size > tail - index"),
        Fault(
            "chunk over the end", "return s->length <= shape.pool - s->offset ? MC_NONE : MC_BAD_CHUNK;", "return 0;"
        ),
        Fault(
            "length read twice",
            "  s->length = length;\n",
            # a busy machine seldom lets the second thread in between, so it waits
            "  (void)poll(0, 0, 1);\n  s->length = (uint32_t)load(word_at(data + offset), RELAXED);\n",
        ),
        Fault("head unchecked", "head - w->peer > w->published - w->peer || head & 7", "head & 7"),
        Fault(
            "tail unchecked", "tail - r->peer > r->shape.capacity - (r->peer - r->published) || tail & 7", "tail & 7"
        ),
    ],
    ids=str,
)
def test_the_fuzzer_sees(tmp_path: Path, fault: Fault) -> None:
    result = fuzz(build(tmp_path, "fuzz_ring", FUZZER, fault), seconds=40)
    assert result.returncode != 0
    assert "ERROR" in result.stderr


# ---- two honest threads


@needs_clang
def test_honest_threads_do_not_race(tmp_path: Path) -> None:
    result = run(build(tmp_path, "honest_threads", ("-O1", "-fsanitize=thread")))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all messages arrived" in result.stdout


@needs_clang
@pytest.mark.parametrize(
    "fault",
    [
        Fault(
            "tail published without release",
            "store(&w->lane->tail, w->mine, memory_order_release)",
            "store(&w->lane->tail, w->mine, RELAXED)",
        ),
        Fault(
            "head published without release",
            "store(&r->lane->head, r->mine, memory_order_release)",
            "store(&r->lane->head, r->mine, RELAXED)",
        ),
    ],
    ids=str,
)
def test_the_thread_sanitizer_sees(tmp_path: Path, fault: Fault) -> None:
    result = run(build(tmp_path, "honest_threads", ("-O1", "-fsanitize=thread"), fault))
    assert result.returncode == 66
    assert "data race" in result.stderr


# ---- a writer that is faster than its reader


@needs_compiler
def test_no_writer_holds_a_reader_of_the_newest(tmp_path: Path) -> None:
    result = run(build(tmp_path, "newest", ("-O1",)))
    assert result.returncode == 0, result.stdout


@needs_compiler
def test_a_reader_that_does_not_bound_itself_is_held(tmp_path: Path) -> None:
    fault = Fault("what comes meanwhile is read too", "newest - r->peeked) > 0", "r->peer - r->peeked) >= 0")
    assert "held for ever" in run(build(tmp_path, "newest", ("-O1",), fault)).stdout


# ---- killed at every instruction


@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.parametrize("optimisation", ["-O1", "-O3"])
def test_successors_recover_from_a_kill_at_every_instruction(tmp_path: Path, optimisation: str) -> None:
    made = build(tmp_path, "every_instruction", (optimisation,))
    result = run(made, "3000" if VERIFY else "120", timeout=500)
    assert result.returncode == 0, result.stdout
    steps = re.match(r"(\d+) instructions", result.stdout)
    assert steps is not None
    assert int(steps[1]) > 10_000


@needs_compiler
@pytest.mark.parametrize(
    "fault",
    [
        Fault(
            "published before it is whole",
            "  w->mine += size;\n  return w->data + offset + WORD;",
            "  store(&w->lane->tail, w->mine += size, memory_order_release);\n  return w->data + offset + WORD;",
        ),
        Fault(
            "acknowledged when read",
            "  consume(r, &s);\n  publish_taken(r, r->mine);\n",
            "  consume(r, &s);\n  publish_taken(r, r->mine);\n  mc_done(r);\n",
        ),
        Fault(
            "not marked as taken",
            "  consume(r, &s);\n  publish_taken(r, r->mine);\n",
            "  consume(r, &s);\n",
        ),
        Fault("chunks in flight forgotten", "w->pool_mine = s.chunk + s.length;", "w->last_chunk = 0; continue;"),
        Fault(
            "batch published message by message",
            "  w->mine += size;\n  return w->data + offset + WORD;",
            "  store(&w->lane->tail, w->mine, memory_order_release);\n"
            "  w->mine += size;\n  return w->data + offset + WORD;",
        ),
        Fault("pad forgotten", "    w->mine += room;\n", ""),
        Fault("chunk freed early", "if (w->mine - w->chunk[i].record < w->mine - head) break;", ""),
    ],
    ids=str,
)
def test_the_kill_at_every_instruction_sees(tmp_path: Path, fault: Fault) -> None:
    result = run(build(tmp_path, "every_instruction", ("-O1",), fault), "120")
    assert result.returncode == 1, result.stdout
    assert "killed at instruction" in result.stdout


# ---- the wake-up, as a model


def check_model(folder: Path, *defines: str) -> str:
    model = ROOT / "tests" / "models" / "wake.pml"
    subprocess.run(["spin", *defines, "-a", model], cwd=folder, check=True, capture_output=True, timeout=60)
    subprocess.run(["cc", "-O1", "-w", "-DSAFETY", "-o", "pan", "pan.c"], cwd=folder, check=True, timeout=60)
    return run(folder / "pan").stdout


@needs_spin
@pytest.mark.parametrize("kind", [(), ("-DFD",)], ids=["futex", "descriptor"])
def test_no_wake_up_is_lost(tmp_path: Path, kind: tuple[str, ...]) -> None:
    output = check_model(tmp_path, *kind)
    assert "errors: 0" in output
    assert "Warning: Search not completed" not in output


@needs_spin
@pytest.mark.parametrize(
    "fault",
    [
        ("-DNO_WRITER_FENCE",),
        ("-DNO_READER_FENCE",),
        ("-DNO_RECHECK",),
        ("-DNO_COMPARE",),
        ("-DFLAG_STAYS",),
        ("-DFD", "-DNO_WRITER_FENCE"),
        ("-DFD", "-DNO_READER_FENCE"),
        ("-DFD", "-DNO_RECHECK"),
    ],
    ids=" ".join,
)
def test_the_model_sees(tmp_path: Path, fault: tuple[str, ...]) -> None:
    assert "invalid end state" in check_model(tmp_path, *fault).partition("Full statespace")[0]


# ---- the benchmark


@needs_compiler
def test_the_benchmark_of_the_ring_runs(tmp_path: Path) -> None:
    made = tmp_path / "bench"
    sources = [ROOT / "native" / "bench_ring.c", ROOT / "native" / "ring.c"]
    assert COMPILER is not None
    flags = ["-std=c11", "-O3", "-D_GNU_SOURCE"]
    subprocess.run([COMPILER, *flags, *sources, "-o", made], check=True, timeout=60)
    result = run(made, "100", "10")
    assert result.returncode == 0
    assert '"c_ring_64B_p50_us": ' in result.stdout
    assert '"c_ring_wake_64B_p50_us": ' in result.stdout
