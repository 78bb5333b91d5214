"""The time of a traced round is divided among kinds of operations, by the code of the executable."""

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from experiments.speed.operations import kind_of_event, operation_kinds
from experiments.speed.profile import IDLE, note, shares, shares_of, traced

HLO = """
HloModule jit_run, is_scheduled=true

%fused_computation (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%p, %p)
}

%fused_computation.1 (p.1: f32[8,8]) -> f32[8] {
  %p.1 = f32[8,8]{1,0} parameter(0)
  %square = f32[8,8]{1,0} multiply(%p.1, %p.1)
  ROOT %reduce.1 = f32[8]{0} reduce(%square, %p.1), dimensions={0}, to_apply=%region
}

%fused_computation.2 (p.2: f32[8,8]) -> f32[8,8] {
  %p.2 = f32[8,8]{1,0} parameter(0)
  ROOT %transpose.1 = f32[8,8]{0,1} transpose(%p.2), dimensions={1,0}
}

ENTRY %main (x: f32[8,8]) -> (f32[8], f32[8,8]) {
  %x = f32[8,8]{1,0} parameter(0)
  %loop_fusion = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_computation
  %input_fusion = f32[8]{0} fusion(%x), kind=kInput, calls=%fused_computation.1
  %moved = f32[8,8]{0,1} fusion(%x), kind=kLoop, calls=%fused_computation.2
  %dot.4 = f32[8,8]{1,0:T(8,128)} dot(%x, %x), lhs_contracting_dims={1}
  %call.7 = (f32[8,8]{1,0}, u8[0]{0}) custom-call(%x, %x), custom_call_target="__cudnn$convForward"
  %while.2 = (s32[], f32[8]{0}) while(%call.7), condition=%c, body=%b
  ROOT %out = (f32[8]{0}, f32[8,8]{1,0}) tuple(%loop_fusion, %moved)
}
"""


def test_kinds_of_instructions():
    kinds = operation_kinds(HLO)
    assert kinds["loop_fusion"] == "elementwise" and kinds["input_fusion"] == "reductions"
    assert kinds["moved"] == "copies and layouts" and kinds["dot.4"] == "matrix products"
    assert kinds["call.7"] == "convolutions" and kinds["while.2"] == ""


@pytest.mark.parametrize(
    ("name", "operation", "kind"),
    [
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<float>", "call.7", "copies and layouts"),
        ("sm90_xmma_fprop_implicit_gemm_tf32f32_nhwc", "call.7", "convolutions"),
        ("sm90_xmma_dgrad_implicit_gemm_tf32f32_nhwc", "", "convolutions"),
        ("nvjet_gemm", "", "matrix products"),
        ("loop_convert_fusion_3", "", "elementwise"),
        ("input_reduce_fusion_2", "", "reductions"),
        ("MemcpyD2D", "", "copies and layouts"),
        ("ThunkBarrier", "", "others"),
        ("while.9", "while.9", ""),
    ],
)
def test_kinds_of_kernels(name, operation, kind):
    assert kind_of_event(name, operation, operation_kinds(HLO)) == kind


def trace(plane, line, *events):
    """A trace with events `(name, operation, start, duration)`, in microseconds."""
    names = [name for name, *_ in events]
    listed = "".join(
        f"events {{ metadata_id: {number} offset_ps: {start * 10**6} duration_ps: {duration * 10**6} "
        f'stats {{ metadata_id: 1 str_value: "{operation}" }} stats {{ metadata_id: 2 str_value: "jit_run" }} '
        f"stats {{ metadata_id: 3 int64_value: 7 }} }}"
        for number, (_, operation, start, duration) in enumerate(events, start=1)
    )
    known = "".join(
        f'event_metadata {{ key: {number} value {{ id: {number} name: "{name}" }} }}'
        for number, name in enumerate(names, start=1)
    )
    stats = "".join(
        f'stat_metadata {{ key: {number} value {{ id: {number} name: "{name}" }} }}'
        for number, name in enumerate(("hlo_op", "hlo_module", "program_id"), start=1)
    )
    text = f'planes {{ name: "{plane}" lines {{ name: "{line}" {listed} }} {known} {stats} }}'
    return ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace(text))


def test_shares_of_a_gpu():
    found = shares_of(
        trace(
            "/device:GPU:0",
            "Stream #13(Compute)",
            ("sm90_xmma_fprop", "call.7", 0, 40),
            ("nchwToNhwcKernel", "call.7", 40, 10),
            ("loop_fusion", "loop_fusion", 50, 30),
        ),
        100e-6,
        [HLO],
    )
    assert found == pytest.approx(
        {"convolutions": 0.4, "copies and layouts": 0.1, "elementwise": 0.3, "no operation": 0.2}
    )
    expected = "40% convolutions, 30% elementwise, 10% copies and layouts; 20% without an operation on the device"
    assert note(found) == expected


def test_operations_at_once_are_counted_once():
    found = shares_of(
        trace("/device:GPU:0", "Stream #1", ("a", "dot.4", 0, 50), ("b", "loop_fusion", 0, 50)), 100e-6, [HLO]
    )
    assert found == pytest.approx({"matrix products": 0.25, "elementwise": 0.25, IDLE: 0.5})


def test_a_trace_without_operations_is_refused():
    with pytest.raises(ValueError, match="no operation"):
        shares_of(trace("/host:CPU", "python"), 1e-3, [HLO])


def test_there_is_no_trace(tmp_path):
    with pytest.raises(ValueError, match="no trace"):
        shares(tmp_path, 1e-3, [HLO])


def test_a_trace_of_this_machine(tmp_path):
    """A matrix product that takes longer than everything else."""
    compiled = jax.jit(lambda x: jnp.sum(x @ x)).lower(jnp.ones((400, 400))).compile()
    x = jnp.ones((400, 400))
    jax.block_until_ready(compiled(x))
    with traced(tmp_path):
        jax.block_until_ready(compiled(x))
    found = shares(tmp_path, 1.0, [compiled.as_text()])
    assert max((kind for kind in found if kind != IDLE), key=found.__getitem__) == "matrix products"
    assert sum(found.values()) == pytest.approx(1)
