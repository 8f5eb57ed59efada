"""Counting collectives in the text of a program: loops, calls, tuples and asynchronous pairs."""

from __future__ import annotations

import toy_jax

from cg_local.jax_backend.program_report import Collective, count_collectives

assert toy_jax  # skips where JAX is not installed

TEXT = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body.1 (p: (s32[], f32[2,8])) -> (s32[], f32[2,8]) {
  %p = (s32[], f32[2,8]{1,0}) parameter(0)
  %v = f32[2,8]{1,0} get-tuple-element(%p), index=1
  %all-reduce.1 = f32[2,8]{1,0} all-reduce(%v), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%add
  %start = (bf16[2,2]{1,0}, bf16[2,8]{1,0}) all-gather-start(%v), dimensions={1}
  %done = bf16[2,8]{1,0} all-gather-done(%start)
  ROOT %t = (s32[], f32[2,8]{1,0}) tuple(%v, %all-reduce.1)
}

%condition.1 (p: (s32[], f32[2,8])) -> pred[] {
  %p = (s32[], f32[2,8]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main.1 (a: f32[2,8]) -> f32[2,8] {
  %a = f32[2,8]{1,0} parameter(0)
  %loop = (s32[], f32[2,8]{1,0}) while(%a), condition=%condition.1, body=%body.1, backend_config={KNOWN}
  %both = (f32[4]{0}, s32[4]{0}) all-reduce(%a, %a), channel_id=2, to_apply=%add
  ROOT %r = f32[2,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_collectives_of_a_loop_count_as_often_as_it_runs() -> None:
    text = TEXT.replace("{KNOWN}", '{"known_trip_count":{"n":"18"}}')
    assert count_collectives(text) == (
        (Collective("all-reduce", 19, 18 * 64 + 32), Collective("all-gather", 18, 18 * 32)),
        True,
    )


def test_loop_of_unknown_length_is_counted_once_and_said() -> None:
    found, is_exact = count_collectives(TEXT.replace("{KNOWN}", "{}"))
    assert [each.count for each in found] == [2, 1]
    assert not is_exact
