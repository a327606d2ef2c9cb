"""Sections on slides, and on what is made of each."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wsi_pipeline.config.base import Count, Fraction, LabelRule, Mpp, Name, NonNegative, Positive, Section


class CohortOptions(Section):
    """Which slides."""

    name: str = Field("cohort", description="Name of the cohort, for the report.")
    slides: str = Field("config/slides.tsv", description="The slide sheet, a TSV file.")
    synthetic: bool = Field(
        False, description="Whether the slides are drawn by a program; said wherever results are shown."
    )
    exclude: tuple[str, ...] = Field(
        (), description="Slides of the sheet that are left out; every evaluation names them."
    )
    test_set: Name = Field("all", description="Name of the whole set of test slides, printed with the figures.")
    public_buckets: bool = Field(False, description="Whether s3:// paths of the sheet are read without credentials.")


class StorageOptions(Section):
    """The options of a pyramid that change its store."""

    passthrough: bool = Field(
        True,
        description="Whether levels that are JPEG tiles are copied tile by tile, not decoded: the store then has "
        "the size and the pixels of the slide.",
    )
    codec: Literal["jpeg", "zstd"] = Field(
        "jpeg", description="What levels that are not copied are compressed with: jpeg, or zstd without loss."
    )
    quality: Annotated[int, Field(ge=1, le=100)] = Field(90, description="JPEG quality.")
    subsampling: Literal["444", "422", "420"] = Field("444", description="JPEG chroma subsampling; 444 is none.")
    zstd_level: Annotated[int, Field(ge=1, le=19)] = Field(3, description="Zstandard level.")
    chunk_px: Annotated[int, Field(ge=64, le=4096)] = Field(
        512, description="Edge of a chunk, the smallest part that is read, in pixels, where tiles are not copied."
    )
    shard_px: Annotated[int, Field(ge=64, le=16384)] = Field(
        4096,
        description="Edge of a shard, one file, in pixels; a multiple of chunk_px (of the tiles, about this much).",
    )
    damaged_tiles: Literal["error", "white"] = Field(
        "error",
        description="What a damaged tile of the slide is: an error, or white and listed in the receipt; white "
        "decodes every tile to find them.",
    )
    verify: Literal["sample", "all"] = Field(
        "sample",
        description="Which tiles of the finished store are decoded and compared with OpenSlide's pixels: 16 a level, "
        "or all.",
    )

    @model_validator(mode="after")
    def _shards_hold_whole_chunks(self) -> Self:
        if self.shard_px % self.chunk_px:
            raise ValueError(f"shard_px {self.shard_px} is no multiple of chunk_px {self.chunk_px}")
        return self


class PyramidOptions(StorageOptions):
    """How slides are stored (convert)."""

    keep: bool = Field(
        True,
        description="Whether pyramids stay after all that is made of them; else their coarse levels do, for report and "
        "viewer, and a pyramid that is needed later is made again.",
    )


class TissueOptions(Section):
    """Where tissue is (tissue)."""

    mpp: Mpp = Field(8.0, description="Scale of the mask, um per pixel.")
    method: Literal["otsu_saturation", "otsu_gray", "gray_threshold"] = Field(
        "otsu_saturation",
        description="Saturation or grey value above or below Otsu's threshold of the whole slide, "
        "or grey below a fixed threshold.",
    )
    threshold: Annotated[float, Field(ge=0, le=255)] | None = Field(
        None,
        description="Fixed threshold, 0 to 255, instead of the one found; "
        "gray_threshold takes 150 where it is null. The sheet's column tissue_threshold sets it for one slide.",
    )
    remove_pen: bool = Field(True, description="Whether blue, green and black ink is taken out.")
    closing_um: NonNegative = Field(40.0, description="Gaps up to this width are closed, um.")
    min_hole_um2: NonNegative = Field(40_000.0, description="Smaller holes are filled, um².")
    min_area_um2: NonNegative = Field(20_000.0, description="Smaller pieces are left out, um².")


class TruthOptions(Section):
    """What annotations mean (truth)."""

    mpp: Mpp = Field(8.0, description="Scale of the truth image, um per pixel.")
    tumor_groups: tuple[str, ...] = Field(
        ("_0", "_1", "Tumor", "metastases"), description="Annotation groups that are tumour."
    )
    cutout_groups: tuple[str, ...] = Field(
        ("_2", "Exclusion", "normal"), description="Groups that are cut out of tumour and are normal tissue."
    )
    ignore_groups: tuple[str, ...] = Field(
        ("Ignore*",), description="Groups that are neither: not trained on, not scored."
    )
    ignore_margin_um: NonNegative = Field(
        0.0, description="Width of a band on either side of the borders of tumour that is ignored too, um."
    )


class PatchesOptions(Section):
    """Which patches train the network (patches)."""

    mpp: Mpp = Field(0.25, description="Scale of a patch, um per pixel.")
    size_px: Annotated[int, Field(ge=75, le=2048)] = Field(299, description="Edge of a patch, pixels.")
    border_px: Annotated[int, Field(ge=0, le=512)] = Field(
        0, description="More pixels stored on each side, within which training moves the patch at random."
    )
    stride_um: Positive | None = Field(None, description="Distance of neighbouring positions, um; null is one patch.")
    min_tissue: Fraction = Field(0.75, description="Least share of a patch that is tissue.")
    label_rule: LabelRule = Field(
        "area_fraction",
        description="Label of a patch: tumour where at least min_tumor of its area is and normal where none is, what "
        "lies between is left out (area_fraction); tumour where its central region has any (centre_region); or the "
        "truth pixel nearest to its centre (centre_nearest).",
    )
    min_tumor: Annotated[float, Field(gt=0, le=1)] = Field(0.75, description="Least share of tumour for area_fraction.")
    region_um: Positive = Field(32.0, description="Edge of the central region of centre_region, um.")
    max_tumor: Count = Field(1000, description="Most tumour patches of a slide.")
    max_normal: Count = Field(1000, description="Most normal patches of a slide.")
    normal_per_tumor: Positive | None = Field(
        None, description="Most normal patches of a slide with tumour patches, for each of these; null is any number."
    )
    codec: Literal["jpeg", "zstd"] = Field("jpeg", description="How patches are stored: jpeg, or zstd without loss.")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(95, description="JPEG quality; chroma is not subsampled.")
    stain_normalisation: Literal["none", "macenko"] = Field(
        "none",
        description="Whether the stains of each slide are turned into those of a reference (Macenko et al. 2009), in "
        "patches and, with a model that was trained on such, in heatmaps.",
    )
