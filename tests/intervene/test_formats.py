"""Formats against numbers rounded by hand: normals, subnormals, ties, saturation, scales of every kind."""

import pytest
import torch

from spikesink.errors import DoesNotApplyError, InputError
from spikesink.intervene.formats import FORMATS, lost, round_to

pytest.importorskip("compressed_tensors")


def rounded(name, rows, largest=None):
    values, scale = round_to(torch.tensor(rows), name, None if largest is None else torch.tensor(largest))
    return values.tolist(), scale.tolist()


def test_e4m3_of_one_scale():
    """448 sets the scale to one: three bits after the point, steps of 2**-9 below 2**-6, ties to even."""
    row = [448.0, 17.0, 19.0, -1.07, 2**-6 * 1.1, 2**-9 * 1.6, 2**-9 * 0.5, 2**-9 * 0.4]
    values, scale = rounded("fp8 e4m3 per tensor", [row])
    assert values == [[448.0, 16.0, 20.0, -1.125, 2**-6 * 1.125, 2**-8, 0.0, 0.0]]
    assert scale == [[1.0] * 8]


def test_a_static_scale_cuts_off_what_is_beyond_it():
    values, scale = rounded("fp8 e4m3 per tensor static", [[1000.0, -1000.0, 6.0, 0.54]], 224.0)
    assert scale == [[0.5] * 4]
    assert values == [[224.0, -224.0, 6.0, 0.5625]]


def test_e5m2_has_two_bits_and_a_wider_range():
    values, scale = rounded("fp8 e5m2 per tensor", [[57344.0, -1.1, 1.2, 2**-14 * 1.1, 2**-16 * 1.4]])
    assert scale == [[1.0] * 5]
    assert values == [[57344.0, -1.0, 1.25, 2**-14, 2**-16]]


def test_a_scale_for_each_token():
    values, scale = rounded("fp8 e4m3 per token", [[448.0, 1.07, 3.3], [0.4375, 0.1, 0.0009765625]])
    assert scale == [[1.0] * 3, [2**-10] * 3]
    # 0.1 is 102.4 steps of 2**-10; e4m3 has 96 and 104 there.
    assert values == [[448.0, 1.125, 3.25], [0.4375, 104 * 2**-10, 2**-10]]


def test_groups_of_128():
    values, scale = rounded("fp8 e4m3 per 128", [[448.0] + [1.07] * 127 + [0.4375] + [0.1] * 127])
    assert values[0][1:3] == [1.125, 1.125]
    assert values[0][128:130] == [0.4375, 104 * 2**-10]
    assert (scale[0][127], scale[0][128]) == (1.0, 2**-10)
    with pytest.raises(DoesNotApplyError, match="groups of 128 do not divide 130 channels"):
        rounded("fp8 e4m3 per 128", [[1.0] * 130])


def test_mx_groups_have_powers_of_two():
    """Of e2m1 (0, 0.5, 1, 1.5, 2, 3, 4, 6) and e4m3; a largest from 1.75 of a power on takes the next scale."""
    row = [6.0, 1.2, -2.4, 0.2] + [0.0] * 28 + [48.0, 9.0, 1.0] + [0.0] * 29
    values, scale = rounded("mxfp4", [row])
    assert values[0][:4] == [6.0, 1.0, -2.0, 0.0]
    assert values[0][32:35] == [48.0, 8.0, 0.0]
    assert (scale[0][0], scale[0][32]) == (1.0, 8.0)
    values, scale = rounded("mxfp8", [[256.0, 17.0] + [0.0] * 30 + [448.0, 17.5] + [0.0] * 30])
    assert (values[0][:2], scale[0][0]) == ([256.0, 16.0], 1.0)
    # 17.5 is 8.75 twos, and e4m3 has 9.
    assert (values[0][32:34], scale[0][32]) == ([448.0, 18.0], 2.0)


def test_nvfp4_has_two_scales():
    """The tensor's largest, 2688 = 6 * 448, makes the second scale 1: groups of 16 have e4m3 scales."""
    row = [2688.0, 400.0] + [0.0] * 14 + [6.0, 2.4, -1.2, 0.2] + [0.0] * 12 + [6.6, 1.0] + [0.0] * 14
    values, scale = rounded("nvfp4", [row])
    assert (values[0][:2], scale[0][0]) == ([2688.0, 448.0], 448.0)
    assert (values[0][16:20], scale[0][16]) == ([6.0, 2.0, -1.0, 0.0], 1.0)
    # 6.6 / 6 = 1.1 is 1.125 in e4m3.
    assert (values[0][32:34], scale[0][32]) == ([6.75, 1.125], 1.125)


def test_e4m3_without_a_scale_cuts_off_at_448():
    values, scale = rounded("fp8 e4m3 scale 1", [[1000.0, -500.0, 17.0, 2**-9 * 1.6, 2**-9 * 0.4]])
    assert values == [[448.0, -448.0, 16.0, 2**-8, 0.0]]
    assert scale == [[1.0] * 5]


def test_a_learned_scale_for_each_channel():
    values, scale = rounded("fp8 e4m3 per channel static", [[17.0, 0.54], [1000.0, -1000.0]], [448.0, 224.0])
    assert values == [[16.0, 0.5625], [448.0, -224.0]]
    assert scale == [[1.0, 0.5]] * 2
    values, scale = rounded("int8 per channel static", [[1.4, 3.0], [200.0, -600.0]], [127.5, 255.0])
    # 3 is one and a half twos, and half goes to even.
    assert values == [[1.0, 4.0], [127.0, -256.0]]
    assert scale == [[1.0, 2.0]] * 2


def test_int8_has_256_steps():
    """127.5 makes the scale one; ties go to even, the last step below is one further than the last above."""
    values, scale = rounded("int8 per tensor static", [[127.4, 200.0, -200.0, 2.5, 0.5, -0.6]], 127.5)
    assert values == [[127.0, 127.0, -128.0, 2.0, 0.0, -1.0]]
    values, scale = rounded("int8 per token", [[127.5, 2.5, -3.5], [255.0, 3.0, 0.9]])
    assert values == [[127.0, 2.0, -4.0], [254.0, 4.0, 0.0]]
    assert scale == [[1.0] * 3, [2.0] * 3]


@pytest.mark.parametrize("size", [32, 128])
def test_int4_and_fp8_of_groups(size):
    """Int4 has 16 steps: 7.5 makes the scale one."""
    rest = [0.0] * (size - 5)
    values, scale = rounded(f"int4 per {size}", [[7.5, 2.5, 0.5, -7.5, 3.4, *rest, 15.0, 3.0, 0.9, -15.0, 5.1, *rest]])
    assert values[0][:5] == [7.0, 2.0, 0.0, -8.0, 3.0]
    assert values[0][size : size + 5] == [14.0, 4.0, 0.0, -16.0, 6.0]
    assert (scale[0][size - 1], scale[0][size]) == (1.0, 2.0)
    rest = [0.0] * (size - 3)
    values, _ = rounded(
        f"fp8 e4m3 per {size}", [[448.0, 1.07, 2**-9 * 0.4, *rest, 0.4375, 0.1, 2**-19, 2**-21, *rest[1:]]]
    )
    assert values[0][:3] == [448.0, 1.125, 0.0]
    assert values[0][size : size + 4] == [0.4375, 104 * 2**-10, 2**-19, 0.0]


def test_what_is_lost_became_zero_or_subnormal():
    values = torch.tensor([[448.0, 2**-6, 2**-7, 0.0, 1e-9]])
    assert lost(values, *round_to(values, "fp8 e4m3 per tensor"), "fp8 e4m3 per tensor").tolist() == [
        [False, False, True, False, True]
    ]
    values = torch.tensor([[127.5, 1.4, 0.5, 0.0, -0.6]])
    assert lost(values, *round_to(values, "int8 per token"), "int8 per token").tolist() == [
        [False, False, True, False, False]
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_and_the_dtype_stay(name):
    static = torch.tensor(2.0) if FORMATS[name].static else None
    zeros = torch.zeros(3, 128, dtype=torch.bfloat16)
    values, scale = round_to(zeros, name, static)
    assert values.dtype == torch.bfloat16
    assert torch.equal(values, zeros)
    assert scale.shape == zeros.shape
    assert bool((scale > 0).all())


def test_refusals():
    with pytest.raises(InputError, match="Unknown format 'fp7'"):
        round_to(torch.ones(1, 1), "fp7")
    with pytest.raises(InputError, match="takes a largest magnitude"):
        round_to(torch.ones(1, 1), "fp8 e4m3 per tensor static")
    with pytest.raises(InputError, match="takes no largest magnitude"):
        round_to(torch.ones(1, 1), "mxfp4", torch.tensor(1.0))
