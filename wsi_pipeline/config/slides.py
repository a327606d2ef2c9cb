"""Config sections of the cohort and of the stages that process one slide: convert, tissue, truth, patches."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wsi_pipeline.config.base import (
    Count,
    Fraction,
    LabelRule,
    Mpp,
    Name,
    NonNegative,
    Positive,
    PositiveFraction,
    Section,
    TissueMethod,
)


class CohortOptions(Section):
    """The cohort of slides."""

    name: str = Field("cohort", description="Name of the cohort in the report.")
    slides: str = Field("config/slides.tsv", description="Path of the slide sheet (TSV, CSV or XLSX).")
    synthetic: bool = Field(
        False, description="Mark the slides as synthetic (drawn by a program) wherever results are shown."
    )
    exclude: tuple[str, ...] = Field((), description="Slides of the sheet to leave out; every evaluation lists them.")
    test_set: Name = Field("all", description="Name of the complete set of test slides, printed with the figures.")
    public_buckets: bool = Field(False, description="Read s3:// paths of the sheet without credentials.")


class StorageOptions(Section):
    """The pyramid options that change the content of the store."""

    passthrough: bool = Field(
        True,
        description="Copy levels that consist of JPEG tiles tile by tile instead of decoding them: the store then has "
        "the size and the pixels of the slide.",
    )
    codec: Literal["jpeg", "zstd"] = Field(
        "jpeg", description="Codec of levels that are not copied: jpeg, or zstd (lossless)."
    )
    quality: Annotated[int, Field(ge=1, le=100)] = Field(90, description="JPEG quality.")
    subsampling: Literal["444", "422", "420"] = Field("444", description="JPEG chroma subsampling; 444 is none.")
    zstd_level: Annotated[int, Field(ge=1, le=19)] = Field(3, description="Zstandard compression level.")
    chunk_px: Annotated[int, Field(ge=64, le=4096)] = Field(
        512, description="Edge length of a chunk, the smallest unit of reading, pixels; copied levels keep their tiles."
    )
    shard_px: Annotated[int, Field(ge=64, le=16384)] = Field(
        4096,
        description="Edge length of a shard (one file), pixels; a multiple of chunk_px. Shards of copied levels hold "
        "as many whole tiles as fit.",
    )
    damaged_tiles: Literal["error", "white"] = Field(
        "error",
        description="Treatment of damaged tiles of the slide. error: the conversion fails. white: they become white "
        "and the receipt lists them; every tile is decoded to find them.",
    )
    verify: Literal["sample", "all"] = Field(
        "sample",
        description="Tiles of the finished store that are decoded and compared with OpenSlide's pixels: 16 per level "
        "(sample), or all.",
    )

    @model_validator(mode="after")
    def _shards_hold_whole_chunks(self) -> Self:
        if self.shard_px % self.chunk_px:
            raise ValueError(f"shard_px {self.shard_px} is no multiple of chunk_px {self.chunk_px}")
        return self


class PyramidOptions(StorageOptions):
    """Storage of slides (stage convert)."""

    keep: bool = Field(
        True,
        description="Keep pyramids after the last stage that reads them. Otherwise only their coarse levels are kept, "
        "for report and viewer, and a pyramid that is needed later is converted again.",
    )


class TissueOptions(Section):
    """Tissue detection (stage tissue)."""

    mpp: Mpp = Field(8.0, description="Scale of the mask, um per pixel.")
    method: TissueMethod = Field(
        "otsu_saturation",
        description="Tissue is: saturation above Otsu's threshold of the whole slide (otsu_saturation), saturation "
        "above that of the glass (glass_saturation: keeps pale tissue), grey value below Otsu's threshold (otsu_gray), "
        "or grey value below a fixed threshold (gray_threshold). Otsu's threshold is replaced where it splits tissue.",
    )
    threshold: Annotated[float, Field(ge=0, le=255)] | None = Field(
        None,
        description="Fixed threshold, 0 to 255, instead of Otsu's; null is 150 for gray_threshold. The sheet's column "
        "tissue_threshold overrides it for one slide.",
    )
    remove_pen: bool = Field(True, description="Exclude blue, green and black pen ink.")
    closing_um: NonNegative = Field(40.0, description="Gaps up to this width are closed, um.")
    min_hole_um2: NonNegative = Field(40_000.0, description="Smaller holes are filled, um².")
    min_area_um2: NonNegative = Field(20_000.0, description="Smaller pieces are removed, um².")


class TruthOptions(Section):
    """Meaning of the annotations (stage truth)."""

    mpp: Mpp = Field(8.0, description="Scale of the truth image, um per pixel.")
    tumor_groups: tuple[str, ...] = Field(
        ("_0", "_1", "Tumor", "metastases"), description="Annotation groups that outline tumour."
    )
    cutout_groups: tuple[str, ...] = Field(
        ("_2", "Exclusion", "normal"), description="Annotation groups that outline normal tissue inside tumour."
    )
    ignore_groups: tuple[str, ...] = Field(
        ("Ignore*",), description="Annotation groups to ignore: neither trained on nor scored. * is no wildcard."
    )
    unused_groups: tuple[str, ...] = Field(
        (), description="Annotation groups that are left out, such as outlines of tissue."
    )
    min_on_tissue: Fraction = Field(
        0.5,
        description="Minimum share of annotated tumour on tissue, as a check of its coordinates on an overview of the "
        "slide; 0 is no check.",
    )
    ignore_margin_um: NonNegative = Field(
        0.0, description="Width of the band on either side of tumour borders that is ignored too, um."
    )


class PatchesOptions(Section):
    """Training and validation patches (stage patches)."""

    mpp: Mpp = Field(0.25, description="Scale of a patch, um per pixel.")
    size_px: Annotated[int, Field(ge=75, le=2048)] = Field(299, description="Edge length of a patch, pixels.")
    border_px: Annotated[int, Field(ge=0, le=512)] = Field(
        0, description="Extra pixels stored on each side, for random shifts of the patch in training."
    )
    stride_um: Positive | None = Field(None, description="Distance of neighbouring patches, um; null is one patch.")
    min_tissue: Fraction = Field(0.75, description="Minimum share of tissue in a patch.")
    label_rule: LabelRule = Field(
        "area_fraction",
        description="Rule for the label of a patch. area_fraction: tumour if at least min_tumor of the area is, "
        "normal if none is; patches in between are not used. centre_region: tumour if the central region contains "
        "any. centre_nearest: the truth pixel nearest to the centre.",
    )
    min_tumor: PositiveFraction = Field(0.75, description="For area_fraction: minimum share of tumour.")
    region_um: Positive = Field(32.0, description="For centre_region: edge length of the central region, um.")
    max_tumor: Count = Field(1000, description="Maximum number of tumour patches per slide.")
    max_normal: Count = Field(1000, description="Maximum number of normal patches per slide.")
    normal_per_tumor: Positive | None = Field(
        None, description="Maximum number of normal patches per tumour patch on slides with tumour; null is no limit."
    )
    codec: Literal["jpeg", "zstd"] = Field("jpeg", description="Codec of the patches: jpeg, or zstd (lossless).")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(95, description="JPEG quality; chroma is not subsampled.")
    stain_normalisation: Literal["none", "macenko"] = Field(
        "none",
        description="Stain normalisation of patches (Macenko et al. 2009). Heatmaps use that of the model.",
    )
