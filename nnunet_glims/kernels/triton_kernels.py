"""The operations as Triton kernels. Only `gpu` imports this module, where Triton is available.

Tensors are contiguous, in float32, float16 or bfloat16; arithmetic is float32. A row is one channel of one case. For a
reduction each program writes a partial result, and these are summed afterwards, so that the result does not depend on
the order in which programs run.

Convolutions march along the depth: a program computes BLOCK consecutive voxels of a plane, in PLANES planes. An input
plane is loaded once for all output planes that it contributes to, whose unfinished sums are kept in registers. Offsets
within a plane have 32 bits, all others 64.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels are interpreted by Python on the CPU. Triton reads the variable when it is imported."""

SPAN_BLOCK, SPAN = (64, 256) if INTERPRETED else (2048, 8192)
"""For kernels without neighbours: voxels that a program processes at a time, and voxels that it processes in total."""


def _marching(*choices: tuple[int, int, int]):
    """Return a decorator that chooses (voxels of a plane, planes, warps) of a program by measuring, per size and process.

    The choices have two to four voxels per thread: with one, loading the 81 taps takes as long as loading the voxels, and
    with eight, registers run out. Tuning runs a kernel many times, so the kernel must not write into what it reads.
    """
    if INTERPRETED:
        choices = ((64, 4, 1),)
    configs = [
        triton.Config({"BLOCK": block, "PLANES": planes}, num_warps=warps, num_stages=1)
        for block, planes, warps in choices
    ]
    return triton.autotune(configs, key=["rows", "depth", "height", "width"])


SIZES = ["rows", "parts", "channels", "sharing", "depth", "height", "width"]
"""Arguments that the compiler makes no variants for. It makes variants for the number of voxels, on which alignment depends."""


# ---- instance norm and PReLU


@triton.jit
def _span(voxels, parts, SPAN: tl.constexpr):
    """Return row, first element and number of elements of this program."""
    program = tl.program_id(0)
    row = program // parts
    start = (program % parts).to(tl.int64) * SPAN
    return row, row.to(tl.int64) * voxels + start, tl.minimum(voxels - start, SPAN).to(tl.int32)


@triton.jit
def _store_moments(partials, place, places, count, pivot, sums, squares):
    """Store count, mean and sum of squared deviations, computed from the sums of `value - pivot` and its square."""
    shift = tl.sum(sums, 0) / count
    tl.store(partials + place, count)
    tl.store(partials + places + place, pivot + shift)
    tl.store(partials + 2 * places + place, tl.maximum(tl.sum(squares, 0) - shift * shift * count, 0.0))


@triton.jit(do_not_specialize=SIZES)
def _moments(x, partials, rows, voxels, parts, BLOCK: tl.constexpr, SPAN: tl.constexpr):
    """Compute the moments of a span. The pivot is the mean of its first block, which is close to the mean of the span."""
    _, start, count = _span(voxels, parts, SPAN)
    lanes = tl.arange(0, BLOCK)
    x += start
    value = tl.load(x + lanes, mask=lanes < count, other=0.0).to(tl.float32)
    pivot = tl.sum(value, 0) / tl.minimum(count, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, count, BLOCK):
        mask = lanes < count - begin
        value = tl.load(x + begin + lanes, mask=mask, other=0.0).to(tl.float32)
        distance = tl.where(mask, value - pivot, 0.0)
        sums += distance
        squares += distance * distance
    _store_moments(partials, tl.program_id(0), rows * parts, count.to(tl.float32), pivot, sums, squares)


@triton.jit(do_not_specialize=SIZES)
def _combine(partials, stats, rows, parts, eps, BLOCK: tl.constexpr):
    """Compute mean and 1 / standard deviation of a row from the moments of its parts (Chan's formula)."""
    row = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    counts = partials + row * parts
    means = counts + rows * parts
    squares = means + rows * parts
    count = tl.zeros([BLOCK], tl.float64)
    total = tl.zeros([BLOCK], tl.float64)
    for begin in range(0, parts, BLOCK):
        mask = lanes < parts - begin
        n = tl.load(counts + begin + lanes, mask=mask, other=0.0).to(tl.float64)
        count += n
        total += n * tl.load(means + begin + lanes, mask=mask, other=0.0).to(tl.float64)
    voxels = tl.sum(count, 0)
    mean = tl.sum(total, 0) / voxels
    deviation = tl.zeros([BLOCK], tl.float64)
    for begin in range(0, parts, BLOCK):
        mask = lanes < parts - begin
        n = tl.load(counts + begin + lanes, mask=mask, other=0.0).to(tl.float64)
        distance = tl.load(means + begin + lanes, mask=mask, other=0.0).to(tl.float64) - mean
        deviation += tl.load(squares + begin + lanes, mask=mask, other=0.0).to(tl.float64) + n * distance * distance
    variance = (tl.sum(deviation, 0) / voxels).to(tl.float32)
    tl.store(stats + row, mean.to(tl.float32))
    tl.store(stats + rows + row, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def _norm(stats, gain, shift, slope, rows, row, channels, sharing):
    """Load mean, 1 / standard deviation, gain, shift and slope of a row; `sharing` consecutive channels have one slope."""
    channel = row % channels
    return (
        tl.load(stats + row),
        tl.load(stats + rows + row),
        tl.load(gain + channel),
        tl.load(shift + channel),
        tl.load(slope + channel // sharing),
    )


@triton.jit(do_not_specialize=SIZES)
def _apply(
    x, stats, gain, shift, slope, y, rows, voxels, parts, channels, sharing, BLOCK: tl.constexpr, SPAN: tl.constexpr
):
    """Compute norm and PReLU; y may be x."""
    row, start, count = _span(voxels, parts, SPAN)
    mean, rstd, gain_, shift_, slope_ = _norm(stats, gain, shift, slope, rows, row, channels, sharing)
    lanes = tl.arange(0, BLOCK)
    x += start
    y += start
    for begin in range(0, count, BLOCK):
        mask = lanes < count - begin
        value = tl.load(x + begin + lanes, mask=mask, other=0.0).to(tl.float32)
        u = (value - mean) * (rstd * gain_) + shift_
        tl.store(y + begin + lanes, tl.where(u > 0, u, slope_ * u).to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _add_gradients(
    x, gradient, stats, gain, shift, slope, partials, rows, voxels, parts, channels, sharing,
    BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Compute three sums over a span: the gradient of the norm's output, this times the normalised value, and the slope's."""
    row, start, count = _span(voxels, parts, SPAN)
    mean, rstd, gain_, shift_, slope_ = _norm(stats, gain, shift, slope, rows, row, channels, sharing)
    lanes = tl.arange(0, BLOCK)
    x += start
    gradient += start
    plain = tl.zeros([BLOCK], tl.float32)
    projected = tl.zeros([BLOCK], tl.float32)
    of_slope = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, count, BLOCK):
        mask = lanes < count - begin
        g = tl.load(gradient + begin + lanes, mask=mask, other=0.0).to(tl.float32)
        z = (tl.load(x + begin + lanes, mask=mask, other=0.0).to(tl.float32) - mean) * rstd
        u = z * gain_ + shift_
        inner = tl.where(u > 0, g, slope_ * g)
        plain += inner
        projected += inner * z
        of_slope += tl.where(u > 0, 0.0, u * g)
    place = tl.program_id(0)
    tl.store(partials + place, tl.sum(plain, 0))
    tl.store(partials + rows * parts + place, tl.sum(projected, 0))
    tl.store(partials + 2 * rows * parts + place, tl.sum(of_slope, 0))


@triton.jit(do_not_specialize=SIZES)
def _input_gradient(
    x, gradient, stats, gain, shift, slope, sums, of_x, rows, voxels, parts, channels, sharing,
    BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the norm's input; of_x may be x."""
    row, start, count = _span(voxels, parts, SPAN)
    mean, rstd, gain_, shift_, slope_ = _norm(stats, gain, shift, slope, rows, row, channels, sharing)
    plain = tl.load(sums + row) / voxels
    projected = tl.load(sums + rows + row) / voxels
    lanes = tl.arange(0, BLOCK)
    x += start
    gradient += start
    of_x += start
    for begin in range(0, count, BLOCK):
        mask = lanes < count - begin
        g = tl.load(gradient + begin + lanes, mask=mask, other=0.0).to(tl.float32)
        z = (tl.load(x + begin + lanes, mask=mask, other=0.0).to(tl.float32) - mean) * rstd
        inner = tl.where(z * gain_ + shift_ > 0, g, slope_ * g)
        result = rstd * gain_ * (inner - plain - z * projected)
        tl.store(of_x + begin + lanes, result.to(of_x.dtype.element_ty), mask=mask)


# ---- depthwise convolutions of dilation 1, 2, 3


@triton.jit
def _tile(depth, height, width, BLOCK: tl.constexpr, PLANES: tl.constexpr):
    """Return row, part of the row, first voxel within a plane, first plane, and the plane after the last of this program."""
    tiles = tl.cdiv(height * width, BLOCK)
    parts = tiles * tl.cdiv(depth, PLANES)
    part = tl.program_id(0) % parts
    first = part // tiles * PLANES
    return tl.program_id(0) // parts, part, part % tiles * BLOCK, first, tl.minimum(first + PLANES, depth)


@triton.jit
def _zeros(BLOCK: tl.constexpr):
    """Return new zeros. Triton treats a variable that shares its initial value with another as constant in a loop."""
    return tl.zeros([BLOCK], tl.float32)


@triton.jit
def _beyond(position, size):
    """Return 7 bits: bit i is set where position + i - 3 lies outside of 0 to size - 1."""
    below = (1 << tl.maximum(3 - position, 0)) - 1
    return (below | -(1 << tl.maximum(tl.minimum(size + 3 - position, 7), 0))) & 127


@triton.jit
def _outside(begin, height, width, BLOCK: tl.constexpr):
    """Return bits for neighbours outside of the plane: 0 to 6 for y - 3 to y + 3, 8 to 14 for x; -1 for a voxel outside."""
    index = begin + tl.arange(0, BLOCK)
    bits = _beyond(index // width, height) | (_beyond(index % width, width) << 8)
    return tl.where(index < height * width, bits, -1)


@triton.jit
def _unless(outside, low, high):
    """Return -1 where low or high is negative, else `outside`; as bit operations, which compile to one instruction."""
    return outside | ((low | high) >> 31)


@triton.jit
def _products(centre, weight, lanes, outside, width, zero, DILATION: tl.constexpr, STEP: tl.constexpr):
    """Return the products of an input plane with each plane of a 3³ kernel; STEP is the distance of two taps in memory."""
    first, second, third = zero, zero, zero
    for i in tl.static_range(3):
        row = centre + (i - 1) * DILATION * width
        for j in tl.static_range(3):
            bits = (1 << (3 + (i - 1) * DILATION)) + (256 << (3 + (j - 1) * DILATION))
            value = tl.load(row + (j - 1) * DILATION + lanes, mask=(outside & bits) == 0, other=0.0).to(tl.float32)
            tap = weight + STEP * (3 * i + j)
            first = tl.fma(value, tl.load(tap), first)
            second = tl.fma(value, tl.load(tap + 9 * STEP), second)
            third = tl.fma(value, tl.load(tap + 18 * STEP), third)
    return first, second, third


@triton.jit
def _emit(to, lanes, value, mask, is_first, count, pivot, sums, squares):
    """Store a finished plane and add it to the statistics, whose pivot is the mean of the first plane."""
    rounded = value.to(to.dtype.element_ty)
    tl.store(to + lanes, rounded, mask=mask)
    value = rounded.to(tl.float32)
    if is_first:
        pivot = tl.sum(tl.where(mask, value, 0.0), 0) / count
    distance = tl.where(mask, value - pivot, 0.0)
    return pivot, sums + distance, squares + distance * distance


@_marching((128, 16, 2), (256, 32, 4), (512, 32, 4), (512, 64, 8))
@triton.jit(do_not_specialize=SIZES)
def _convolve(
    x, weight, bias, y, partials, rows, channels, depth, height, width, BLOCK: tl.constexpr, PLANES: tl.constexpr
):
    """Compute all three convolutions of x (N, C, …) into y (N, 3C, …), and the moments of each part."""
    row, part, begin, first, last = _tile(depth, height, width, BLOCK, PLANES)
    lanes = tl.arange(0, BLOCK)
    outside = _outside(begin, height, width, BLOCK)
    plane = (height * width).to(tl.int64)
    count = tl.minimum(height * width - begin, BLOCK).to(tl.float32)
    case = row // channels
    row_1 = row + 2 * case * channels  # the row in y: 3 * case * channels + channel
    row_2 = row_1 + channels
    row_3 = row_2 + channels
    weight_1 = weight + row % channels * 27
    weight_2 = weight_1 + channels * 27
    weight_3 = weight_2 + channels * 27
    bias_1 = tl.load(bias + row % channels)
    bias_2 = tl.load(bias + channels + row % channels)
    bias_3 = tl.load(bias + 2 * channels + row % channels)
    x += (row.to(tl.int64) * depth + first - 3) * plane + begin
    y_1 = y + (row_1.to(tl.int64) * depth + first - 4) * plane + begin
    y_2 = y + (row_2.to(tl.int64) * depth + first - 5) * plane + begin
    y_3 = y + (row_3.to(tl.int64) * depth + first - 6) * plane + begin
    pivot_1, pivot_2, pivot_3 = bias_1, bias_2, bias_3
    sums_1, sums_2, sums_3 = _zeros(BLOCK), _zeros(BLOCK), _zeros(BLOCK)
    squares_1, squares_2, squares_3 = _zeros(BLOCK), _zeros(BLOCK), _zeros(BLOCK)
    # Unfinished planes of the three outputs
    a0, a1 = _zeros(BLOCK), _zeros(BLOCK)
    b0, b1, b2, b3 = _zeros(BLOCK), _zeros(BLOCK), _zeros(BLOCK), _zeros(BLOCK)
    c0, c1, c2, c3, c4, c5 = _zeros(BLOCK), _zeros(BLOCK), _zeros(BLOCK), _zeros(BLOCK), _zeros(BLOCK), _zeros(BLOCK)
    zero = _zeros(BLOCK)
    for z in range(first - 3, last + 3):
        here = _unless(outside, z, depth - 1 - z)
        before_1, at_1, after_1 = _products(x, weight_1, lanes, here, width, zero, 1, 1)
        before_2, at_2, after_2 = _products(x, weight_2, lanes, here, width, zero, 2, 1)
        before_3, at_3, after_3 = _products(x, weight_3, lanes, here, width, zero, 3, 1)
        pivot_1, sums_1, squares_1 = _emit(
            y_1, lanes, a0 + after_1 + bias_1, _unless(outside, z - 1 - first, last - 1 - (z - 1)) >= 0, first == z - 1,
            count, pivot_1, sums_1, squares_1,
        )  # fmt: skip
        pivot_2, sums_2, squares_2 = _emit(
            y_2, lanes, b0 + after_2 + bias_2, _unless(outside, z - 2 - first, last - 1 - (z - 2)) >= 0, first == z - 2,
            count, pivot_2, sums_2, squares_2,
        )  # fmt: skip
        pivot_3, sums_3, squares_3 = _emit(
            y_3, lanes, c0 + after_3 + bias_3, _unless(outside, z - 3 - first, last - 1 - (z - 3)) >= 0, first == z - 3,
            count, pivot_3, sums_3, squares_3,
        )  # fmt: skip
        a0, a1 = a1 + at_1, before_1
        b0, b1, b2, b3 = b1, b2 + at_2, b3, before_2
        c0, c1, c2, c3, c4, c5 = c1, c2, c3 + at_3, c4, c5, before_3
        x += plane
        y_1 += plane
        y_2 += plane
        y_3 += plane
    parts = tl.cdiv(height * width, BLOCK) * tl.cdiv(depth, PLANES)
    total = count * (last - first)
    _store_moments(partials, row_1 * parts + part, 3 * rows * parts, total, pivot_1, sums_1, squares_1)
    _store_moments(partials, row_2 * parts + part, 3 * rows * parts, total, pivot_2, sums_2, squares_2)
    _store_moments(partials, row_3 * parts + part, 3 * rows * parts, total, pivot_3, sums_3, squares_3)


@_marching((128, 16, 2), (256, 32, 4), (512, 32, 4), (512, 64, 8))
@triton.jit(do_not_specialize=SIZES)
def _convolve_back(y, weight, x, rows, channels, depth, height, width, BLOCK: tl.constexpr, PLANES: tl.constexpr):
    """Compute the gradient of x (N, C, …) from that of the convolutions (N, 3C, …), with mirrored kernels and one sum."""
    row, _, begin, first, last = _tile(depth, height, width, BLOCK, PLANES)
    lanes = tl.arange(0, BLOCK)
    outside = _outside(begin, height, width, BLOCK)
    plane = (height * width).to(tl.int64)
    row_1 = row + 2 * (row // channels) * channels
    weight_1 = weight + row % channels * 27 + 26
    weight_2 = weight_1 + channels * 27
    weight_3 = weight_2 + channels * 27
    y_1 = y + (row_1.to(tl.int64) * depth + first - 3) * plane + begin
    y_2 = y_1 + channels * (depth * plane)
    y_3 = y_2 + channels * (depth * plane)
    x += (row.to(tl.int64) * depth + first - 6) * plane + begin
    s0, s1, s2, s3, s4, s5 = _zeros(BLOCK), _zeros(BLOCK), _zeros(BLOCK), _zeros(BLOCK), _zeros(BLOCK), _zeros(BLOCK)
    zero = _zeros(BLOCK)
    for z in range(first - 3, last + 3):
        here = _unless(outside, z, depth - 1 - z)
        before_1, at_1, after_1 = _products(y_1, weight_1, lanes, here, width, zero, 1, -1)
        before_2, at_2, after_2 = _products(y_2, weight_2, lanes, here, width, zero, 2, -1)
        before_3, at_3, after_3 = _products(y_3, weight_3, lanes, here, width, zero, 3, -1)
        tl.store(x + lanes, (s0 + after_3).to(x.dtype.element_ty), mask=_unless(outside, z - 3 - first, 0) >= 0)
        s0, s1, s2 = s1 + after_2, s2 + after_1, s3 + at_1 + at_2 + at_3
        s3, s4, s5 = s4 + before_1, s5 + before_2, before_3
        y_1 += plane
        y_2 += plane
        y_3 += plane
        x += plane


@_marching((64, 32, 2), (128, 32, 4), (128, 128, 4), (256, 64, 8))
@triton.jit(do_not_specialize=SIZES)
def _correlate(x, y, partials, rows, channels, depth, height, width, BLOCK: tl.constexpr, PLANES: tl.constexpr):
    """Compute the gradients of one dilation's 27 taps over a part; y is the gradient of the convolutions (N, 3C, …)."""
    row, part, begin, first, last = _tile(depth, height, width, BLOCK, PLANES)
    parts = tl.cdiv(height * width, BLOCK) * tl.cdiv(depth, PLANES)
    dilation = tl.program_id(1) + 1
    lanes = tl.arange(0, BLOCK)
    outside = tl.where(begin + lanes < height * width, 0, -1)
    taps = tl.arange(0, 16)  # the 9 of a plane, in a power of two
    shift_y = (taps // 3 - 1) * dilation
    shift_x = (taps % 3 - 1) * dilation
    near_y = ((begin + lanes) // width)[None, :] + shift_y[:, None]
    near_x = ((begin + lanes) % width)[None, :] + shift_x[:, None]
    mask = (taps < 9)[:, None] & (outside >= 0)[None, :]
    mask = mask & (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
    shift = (shift_y * width + shift_x)[:, None] + lanes[None, :]
    plane = (height * width).to(tl.int64)
    y_row = row + (2 * (row // channels) + dilation - 1) * channels
    x += (row.to(tl.int64) * depth + first) * plane + begin
    y += (y_row.to(tl.int64) * depth + first) * plane + begin
    before = tl.zeros([16, BLOCK], tl.float32)
    at = tl.zeros([16, BLOCK], tl.float32)
    after = tl.zeros([16, BLOCK], tl.float32)
    for z in range(first, last):
        before_there = _unless(outside, z - dilation, 0) >= 0
        after_there = _unless(outside, depth - 1 - z - dilation, 0) >= 0
        value = tl.load(x + shift, mask=mask, other=0.0).to(tl.float32)
        y_before = tl.load(y - dilation * plane + lanes, mask=before_there, other=0.0).to(tl.float32)
        y_at = tl.load(y + lanes, mask=outside >= 0, other=0.0).to(tl.float32)
        y_after = tl.load(y + dilation * plane + lanes, mask=after_there, other=0.0).to(tl.float32)
        before = tl.fma(value, y_after[None, :], before)
        at = tl.fma(value, y_at[None, :], at)
        after = tl.fma(value, y_before[None, :], after)
        x += plane
        y += plane
    places = partials + (y_row.to(tl.int64) * 27 + taps) * parts + part
    tl.store(places, tl.sum(before, 1), mask=taps < 9)
    tl.store(places + 9 * parts, tl.sum(at, 1), mask=taps < 9)
    tl.store(places + 18 * parts, tl.sum(after, 1), mask=taps < 9)


# ---- called from `gpu`


class _Rows:
    """The rows of a tensor, and how kernels without neighbours divide them into parts."""

    def __init__(self, x: Tensor):
        self.rows, self.voxels = x.shape[0] * x.shape[1], x.shape[2:].numel()
        self.parts = triton.cdiv(self.voxels, SPAN)
        self.grid = (self.rows * self.parts,)

    def launch(self, kernel, *arguments, channels: tuple[int, ...] = ()) -> None:
        kernel[self.grid](*arguments, self.rows, self.voxels, self.parts, *channels, BLOCK=SPAN_BLOCK, SPAN=SPAN)


def _combined(partials: Tensor, rows: int, parts: int, eps: float) -> Tensor:
    stats = partials.new_empty(2, rows)
    _combine[(rows,)](partials, stats, rows, parts, eps, BLOCK=256)
    return stats


def _stats(x: Tensor, eps: float) -> Tensor:
    """Return mean and 1 / standard deviation of each row, (2, rows)."""
    over = _Rows(x)
    partials = x.new_empty(3, over.rows * over.parts, dtype=torch.float32)
    over.launch(_moments, x, partials)
    return _combined(partials, over.rows, over.parts, eps)


def _normalised(x: Tensor, stats: Tensor, norm: list[Tensor], sharing: int, out: Tensor) -> Tensor:
    """Write norm and PReLU to `out`, which may be x. `norm`: gain, shift, slope; `sharing` channels share a slope."""
    _Rows(x).launch(_apply, x, stats, *norm, out, channels=(x.shape[1], sharing))
    return out


def _norm_gradients(
    x: Tensor, stats: Tensor, norm: list[Tensor], sharing: int, gradient: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of gain, shift (channels) and slope; write that of x to `out`, which may be x."""
    over, channels = _Rows(x), (x.shape[1], sharing)
    partials = stats.new_empty(3, over.rows, over.parts)
    over.launch(_add_gradients, x, gradient, stats, *norm, partials, channels=channels)
    sums = partials.sum(-1)
    over.launch(_input_gradient, x, gradient, stats, *norm, sums, out, channels=channels)
    of_shift, of_gain, of_slope = sums.view(3, *x.shape[:2])
    return of_gain.sum(0), of_shift.sum(0), of_slope.sum(0).view(-1, sharing).sum(1)


def _parts(size: torch.Size, choice: dict[str, int]) -> int:
    return triton.cdiv(size[1] * size[2], choice["BLOCK"]) * triton.cdiv(size[0], choice["PLANES"])


def _march(kernel, x: Tensor, *tensors: Tensor, programs: int = 1) -> int:
    """Launch a marching kernel for each row of x (N, C, …); return the number of parts of a row."""
    (batch, channels), size = x.shape[:2], x.shape[2:]
    rows = batch * channels
    kernel[lambda choice: (rows * _parts(size, choice), programs)](*tensors, rows, channels, *size)
    return _parts(size, kernel.best_config.kwargs)


def _most_parts(kernel, size: torch.Size) -> int:
    return max(_parts(size, config.kwargs) for config in kernel.configs)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the three convolutions (N, 3C, …), and mean and 1 / standard deviation of their rows, (2, rows)."""
    batch, channels, *size = x.shape
    y = x.new_empty(batch, 3 * channels, *size)
    rows = batch * 3 * channels
    partials = x.new_empty(3 * rows * _most_parts(_convolve, x.shape[2:]), dtype=torch.float32)
    parts = _march(_convolve, x, x, weight, bias, y, partials)
    return y, _combined(partials, rows, parts, eps)


def branches(x, weight, bias, gain, shift, slope, eps: float) -> Tensor:
    """See `formulas.branches`."""
    weight, bias, *norm = _float32(weight, bias, gain, shift, slope)
    y, stats = _convolved(x, weight, bias, eps)
    return _normalised(y, stats, norm, x.shape[1], out=y)


def branches_backward(x, weight, bias, gain, shift, slope, gradient, eps: float) -> tuple[Tensor, ...]:
    """Return the gradients of x, weight, bias, gain, shift and slope of `branches`. The norm makes that of the bias 0."""
    batch, channels = x.shape[:2]
    taps, biases, *norm = _float32(weight, bias, gain, shift, slope)
    y, stats = _convolved(x, taps, biases, eps)
    of_norm = _norm_gradients(y, stats, norm, channels, gradient, out=y)
    of_x = torch.empty_like(x)
    _march(_convolve_back, x, y, taps, of_x)
    partials = stats.new_empty(batch * taps.numel() * _most_parts(_correlate, x.shape[2:]))
    parts = _march(_correlate, x, x, y, partials, programs=3)
    of_weight = partials[: batch * taps.numel() * parts].view(batch, *weight.shape, parts).sum((0, -1))
    of_parameters = (of_weight, torch.zeros_like(bias), *(of.view(bias.shape) for of in of_norm[:2]), of_norm[2])
    return of_x, *(
        of.to(parameter.dtype) for of, parameter in zip(of_parameters, (weight, bias, gain, shift, slope), strict=True)
    )


def norm_act(x, gain, shift, slope, eps: float) -> Tensor:
    """See `formulas.norm_act`."""
    return _normalised(x, _stats(x, eps), _float32(gain, shift, slope), x.shape[1], out=torch.empty_like(x))


def norm_act_backward(x, gain, shift, slope, gradient, eps: float) -> tuple[Tensor, ...]:
    """Return the gradients of x, gain, shift and slope of `norm_act`."""
    of_x, norm = torch.empty_like(x), _float32(gain, shift, slope)
    of_norm = _norm_gradients(x, _stats(x, eps), norm, x.shape[1], gradient, out=of_x)
    return of_x, *(of.to(parameter.dtype) for of, parameter in zip(of_norm, (gain, shift, slope), strict=True))


def _float32(*tensors: Tensor) -> list[Tensor]:
    return [tensor.float().contiguous() for tensor in tensors]
