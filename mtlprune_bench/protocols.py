"""Protocols: how labels are read and predictions turned into numbers. Two never share a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def switch(default: Any, standard: str, disparse: str) -> Any:
    """Return a protocol field that says what it does under either protocol."""
    return field(default=default, metadata={"standard": standard, "disparse": disparse})


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One set of conventions; the defaults are `standard`, and every switch is one difference to `disparse`."""

    name: str
    description: str = field(compare=False)
    resize: str = switch(
        "aligned",
        "logits are resized bilinearly with aligned corners, labels are read at the points they fall on",
        "nearest neighbour by floor(i H / h), which shifts labels against features by up to one cell",
    )
    pixels: str = switch(
        "rgb",
        "RGB in [0, 1], minus the dataset's mean, over its standard deviation",
        "BGR in [0, 255], minus the dataset's mean",
    )
    pad: str = switch(
        "mean",
        "images are padded with the mean, 0 after normalising",
        "images are padded with black before the mean is subtracted",
    )
    decode_normals: bool = switch(
        True,
        "stored codes are decoded to unit vectors; zero vectors are invalid",
        "raw 8-bit codes of NYU-v2 are taken for vectors; zero normals count as valid",
    )
    mirror_targets: bool = switch(
        True,
        "mirroring an image negates the x of its normals",
        "the same for Taskonomy; NYU-v2 normals are mirrored as pictures, their x left as it was",
    )
    rescale_targets: bool = switch(
        True, "enlarging an image by s divides its depth by s", "depth is left as it was"
    )
    inpainted_depth: bool = switch(
        False,
        "depth counts where it was measured, if the files say where",
        "holes in depth that were painted in count as measured",
    )
    merge_uncertain: bool = switch(
        False,
        "Taskonomy's uncertain label is ignored",
        "Taskonomy's uncertain label is merged into the background",
    )
    iou_over: str = switch(
        "present",
        "mean IoU over the classes that occur in labels or predictions",
        "mean IoU over the classes with at least one correct pixel",
    )
    average: str = switch(
        "pixel",
        "every valid pixel of the set counts the same",
        "means of batches, weighted by their number of images",
    )
    count_void: bool = switch(
        False,
        "pixels without a class are left out of pixel accuracy",
        "pixels that the files mark -1 (Cityscapes) count as wrong",
    )
    negative_depth_hits: bool = switch(
        False,
        "a depth prediction of 0 or less misses every delta",
        "a negative depth prediction counts as within every delta",
    )
    select: str = switch(
        "last",
        "the weights after the last step are evaluated",
        "the weights with the lowest loss on the test set are evaluated",
    )


STANDARD = Protocol(name="standard", description="Correct conventions; the default.")
DISPARSE = Protocol(
    name="disparse",
    description="The conventions of the released DiSparse code, to compare with the papers' tables.",
    resize="nearest",
    pixels="bgr255",
    pad="black",
    decode_normals=False,
    mirror_targets=False,
    rescale_targets=False,
    inpainted_depth=True,
    merge_uncertain=True,
    iou_over="hit",
    average="batch",
    count_void=True,
    negative_depth_hits=True,
    select="test",
)
PROTOCOLS = {protocol.name: protocol for protocol in (STANDARD, DISPARSE)}
