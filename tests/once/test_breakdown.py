"""Where `bench/breakdown.py` books the time of a sample. A new compiled module needs a stage."""

from __future__ import annotations

import sys

from support import ROOT

BENCH = ROOT / "bench"


def test_each_sample_belongs_to_a_stage() -> None:
    sys.path.insert(0, str(BENCH))
    try:
        from breakdown import samples, stage_of
    finally:
        sys.path.remove(str(BENCH))
    text = """
\tffffffff81 tcp_sendmsg_locked+0x1 ([kernel.kallsyms])
\tffffffff82 __x64_sys_sendto+0x2 ([kernel.kallsyms])
\t7f31 [unknown] (/usr/lib/libc.so.6)

\tffffffff83 clear_page_erms ([kernel.kallsyms])
\tffffffff84 exc_page_fault+0x9 ([kernel.kallsyms])

\t7f32 __pyx_f_step+0x1 (/x/metastore/_core/raft_log.cpython-311-x86_64-linux-gnu.so)

\t7f33 0x0000b0ae (/usr/lib/libnghttp2.so.14.24.1)

\t7f34 memcpy (/usr/lib/libc.so.6)

\t7f35 something (/usr/lib/ld-linux.so)
"""
    expected = ["socket", "new memory", "Raft", "HTTP/2 and replies", "allocation and copies (libc)", "other"]
    assert [stage_of(stack) for stack in samples(text)] == expected
    modules = [path.stem for path in (ROOT / "metastore" / "_core").glob("*.pyx")]
    assert [name for name in modules if stage_of([("f", f"{name}.cpython-311.so")]) in ("other", "interpreter")] == []
