"""Open all images of a slide in napari (napari-ome-zarr, without a display) and check that they are aligned.

python open_in_napari.py RESULTS MODEL SLIDE
"""

import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from napari.components import ViewerModel
from napari_ome_zarr import napari_get_reader

results, model, slide = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
facts = json.loads((results / "heatmaps" / model / f"{slide}.json").read_text())
mpp, (width, height) = facts["slide_mpp"], facts["slide_size"]
stores = {name: results / "slides" / slide / f"{name}.ome.zarr" for name in ("pyramid", "tissue", "truth")}
stores |= {name: results / name / model / f"{slide}.ome.zarr" for name in ("heatmaps", "confusion")}

viewer = ViewerModel()
for name, store in stores.items():
    first = len(viewer.layers)
    # The reader prints what it reads.
    with redirect_stdout(io.StringIO()):
        found = napari_get_reader(str(store))(str(store))
    for data, options, kind in found:
        getattr(viewer, f"add_{kind}")(data, **options)
    layers = viewer.layers[first:]
    assert layers, name
    assert {layer._type_string for layer in layers} == {
        "labels" if name in ("tissue", "truth", "confusion") else "image"
    }
    for layer in layers:
        edge = float(layer.scale[-1])
        # The origin of world coordinates is the centre of the slide's first pixel.
        begins = facts["grid"]["patch_px"] * mpp / 2 - edge / 2 if name in ("heatmaps", "confusion") else 0.0
        corner = np.array(layer.data_to_world((-0.5, -0.5))) + mpp / 2
        assert np.allclose(corner, begins), (name, corner, begins)
        rows, columns = layer.level_shapes[0][-2:] if layer.multiscale else layer.data.shape[-2:]
        far = np.array(layer.data_to_world((rows - 0.5, columns - 0.5))) + mpp / 2
        assert (far >= np.array((height, width)) * mpp - begins - edge).all(), (name, far)
    print(f"{name}: {len(layers)} layers, {edge:g} um per pixel, starting at {begins:g} um")
