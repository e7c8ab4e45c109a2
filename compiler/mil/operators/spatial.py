"""Resizing, and moving values between channels and space."""

from __future__ import annotations

import numpy as np

from compiler.mil import interpolation
from compiler.mil.registry import Node, converts
from compiler.mil.values import Value, emit, shape_of

_PICTURE = 4


@converts("DepthToSpace")
def _depth_to_space(node: Node) -> Value:
    block = node.integer("blocksize", 1)
    if node.text("mode", "DCR") == "CRD":
        return emit("pixel_shuffle", x=node.value(), upscale_factor=block)
    return emit("depth_to_space", x=node.value(), block_size=block)


@converts("SpaceToDepth")
def _space_to_depth(node: Node) -> Value:
    return emit("space_to_depth", x=node.value(), block_size=node.integer("blocksize", 1))


@converts("Resize", "Upsample")
def _resize(node: Node) -> Value:
    """Core ML's own upsampling where it means the same, else a product with exact weights per axis."""
    old, asked = node.shape(), _asked(node)
    new, scales = asked
    mode = node.text("mode", "nearest")
    how = node.text("coordinate_transformation_mode", "half_pixel" if node.kind == "Resize" else "asymmetric")
    if how == "tf_crop_and_resize":
        raise node.refusal("another coordinate transformation", how)
    if node.integer("antialias", 0):
        raise node.refusal("no antialias", "antialias 1")
    own = _own(node, mode, how, new)
    if own is not None:
        return own
    x = node.value()
    for axis, (size, wanted) in enumerate(zip(old, new, strict=True)):
        if size == wanted and scales[axis] == 1.0:
            continue
        places = interpolation.places(size, wanted, scales[axis], how)
        x = _along(node, x, axis, places, mode)
    return x


def _asked(node: Node) -> tuple[list[int], list[float]]:
    """Return the wanted shape and scales."""
    old = node.shape()
    axes = node.integers("axes", range(len(old)))
    where = 2 if node.kind == "Resize" else 1
    if node.has(3) and node.constant(3).size:
        if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise node.refusal("keep_aspect_ratio_policy stretch", "another")
        sizes = list(old)
        for axis, size in zip(axes, node.numbers(3), strict=True):
            sizes[axis] = size
        return sizes, [new / size for new, size in zip(sizes, old, strict=True)]
    scales = [1.0] * len(old)
    for axis, scale in zip(axes, node.constant(where).reshape(-1).tolist(), strict=True):
        scales[axis] = float(scale)
    return [int(size * scale) for size, scale in zip(old, scales, strict=True)], scales


def _own(node: Node, mode: str, how: str, new: list[int]) -> Value | None:
    old = node.shape()
    whole = (
        len(old) == _PICTURE
        and new[:2] == list(old[:2])
        and not any(wanted % size for size, wanted in zip(old, new, strict=True))
    )
    if not whole:
        return None
    factors = {"scale_factor_height": new[2] // old[2], "scale_factor_width": new[3] // old[3]}
    rounding = node.text("nearest_mode", "round_prefer_floor")
    plain = (how == "asymmetric" and rounding == "floor") or (
        how in {"half_pixel", "pytorch_half_pixel"} and rounding.startswith("round_prefer")
    )
    if mode == "nearest" and (plain or node.kind == "Upsample"):
        return emit("upsample_nearest_neighbor", x=node.value(), **factors)
    if mode == "linear" and how in {"align_corners", "half_pixel"}:
        return emit("upsample_bilinear", x=node.value(), align_corners=how == "align_corners", **factors)
    return None


def _along(node: Node, x: Value, axis: int, places: interpolation.Places, mode: str) -> Value:
    """Resize one axis."""
    size = shape_of(x)[axis]
    if mode == "nearest":
        rounding = node.text("nearest_mode", "round_prefer_floor" if node.kind == "Resize" else "floor")
        return emit("gather", x=x, indices=interpolation.nearest(places, size, rounding), axis=axis)
    if mode not in {"linear", "cubic"}:
        raise node.refusal("mode nearest, linear or cubic", mode)
    outside = bool(node.integer("exclude_outside", 0))
    matrix = (
        interpolation.linear(places, size)
        if mode == "linear"
        else interpolation.cubic(places, size, node.number("cubic_coeff_a", -0.75), exclude_outside=outside)
    )
    last = len(shape_of(x)) - 1
    perm = list(range(last + 1))
    perm[axis], perm[last] = last, axis
    turned = x if axis == last else emit("transpose", x=x, perm=perm)
    product = emit("matmul", x=turned, y=np.ascontiguousarray(matrix.T))
    return product if axis == last else emit("transpose", x=product, perm=perm)
