"""Figures: what is where on the page, who can read it, and what reaches the notebook."""

import base64
import html
import io
import itertools
import os
import re
import subprocess
import sys

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text

from vaetutor import plots
from vaetutor._style import COLOURS

DIAGRAMS = {"encoder_diagram": 3.4, "architecture_diagram": 5.4}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A running IPython, as a notebook has it."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    yield InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    InteractiveShell.clear_instance()


def frame(validation: bool = True, epochs: int = 40) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    elbo, kl = -105 - 80 * np.exp(-epoch / 6), 25 - 20 * np.exp(-epoch / 4)
    columns = {"epoch": epoch, "elbo": elbo, "reconstruction": elbo + kl, "kl": kl}
    return pd.DataFrame(columns | ({"validation_elbo": elbo - 1.2} if validation else {}))


def latent_points(classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)
    y = torch.arange(200, device="cpu") % classes
    centres = 3 * torch.randn(classes, 2, generator=generator, device="cpu")
    return centres[y] + 0.4 * torch.randn(200, 2, generator=generator, device="cpu"), y


def draw_everything():
    """One figure of every kind, by name."""
    images, z = torch.rand(12, 784), torch.linspace(-2, 2, 4)
    grids = {
        "image_grid": lambda ax: plots.image_grid(ax, images),
        "reconstructions": lambda ax: plots.reconstructions(ax, images, images),
        "latent_manifold": lambda ax: plots.latent_manifold(ax, images, z, z[:3]),
        "latent_scatter": lambda ax: plots.latent_scatter(ax, *latent_points()),
        "training_curves": lambda ax: plots.training_curves(ax, frame()),
    }
    diagrams = {name: getattr(plots, name) for name in DIAGRAMS}
    for name, draw in (grids | diagrams).items():
        fig, ax = plots.figure(height=DIAGRAMS.get(name))
        assert draw(ax) is ax
        yield name, fig


def pixels(fig) -> np.ndarray:
    """The figure as printed, in grey from 0 (black) to 1 (white), shape (rows, columns)."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="rgba", dpi=100)
    width, height = fig.canvas.get_width_height()
    rgba = np.frombuffer(buffer.getvalue(), np.uint8).reshape(-1, round(width), 4)
    assert (rgba[..., 3] == 255).all()
    assert len(rgba) == height
    return rgba[..., :3].mean(-1) / 255


def printed_at(fig, ax, points) -> np.ndarray:
    """The greys at points given in the units of the axes."""
    fig.set_dpi(100)
    page = pixels(fig)
    columns, rows_up = ax.transData.transform(points).T
    return page[(len(page) - rows_up).astype(int), columns.astype(int)]


def texts(fig) -> list[Text]:
    fig.draw_without_rendering()
    return [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]


def box_of(text) -> mpl.transforms.Bbox:
    """The words alone: an annotation counts its pointing line in."""
    return Text.get_window_extent(text)


def overlapping(words: list[Text]) -> list[tuple[str, str]]:
    boxes = [(text.get_text(), box_of(text)) for text in words]
    return [(a, b) for (a, p), (b, q) in itertools.combinations(boxes, 2) if p.overlaps(q)]


# Images


@pytest.mark.parametrize("flat", [True, False])
def test_image_grid_reads_like_a_page_and_images_stand_upright(flat):
    # Four images of 2 x 3 pixels; each has ink in one pixel of its own.
    images, where = torch.zeros(4, 2, 3), [(0, 0), (0, 2), (1, 0), (1, 1)]
    for image, pixel in zip(images, where, strict=True):
        image[pixel] = 1
    fig, ax = plots.figure(width=4, height=4)
    plots.image_grid(ax, images.flatten(1) if flat else images, (2, 3), columns=2)

    assert len(ax.images) == 1
    for k, (tile_row, tile_column) in enumerate(itertools.product(range(2), range(2))):
        rows, columns = np.mgrid[0:2, 0:3]
        centres = np.stack([tile_column + (columns + 0.5) / 3, tile_row + (rows + 0.5) / 2], -1)
        grey = printed_at(fig, ax, centres.reshape(-1, 2)).reshape(2, 3)
        assert grey[where[k]] < 0.1
        assert (grey < 0.1).sum() == 1
    up = ax.transData.transform([(0.5, 0.5), (0.5, 1.5), (1.5, 0.5)])
    assert up[0, 1] > up[1, 1]  # the first row of images is above the second
    assert up[0, 0] < up[2, 0]
    assert ax.get_aspect() == pytest.approx(2 / 3)  # square pixels


def test_image_grid_fills_the_last_row_with_white():
    fig, ax = plots.figure(width=4, height=4)
    plots.image_grid(ax, torch.ones(5, 4), (2, 2), columns=3)
    centres = [(column + 0.5, row + 0.5) for row in range(2) for column in range(3)]
    assert (printed_at(fig, ax, centres) < 0.1).tolist() == [True] * 5 + [False]
    assert printed_at(fig, ax, centres)[-1] == 1


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (9, 3), (10, 3), (38, 6)])
def test_image_grid_is_nearly_square_by_default(n, columns):
    _, ax = plots.figure()
    plots.image_grid(ax, torch.zeros(n, 4), (2, 2))
    assert ax.images[0].get_array().shape == (2 * -(-n // columns), 2 * columns)


@pytest.mark.parametrize(("largest", "black"), [(0.5, 1.0), (1.0, 1.0), (16.0, 16.0)])
def test_grey_scale_starts_at_zero_and_ends_at_one_or_the_largest_value(largest, black):
    _, ax = plots.figure()
    plots.image_grid(ax, torch.tensor([[0.0, largest]]), (1, 2))
    assert ax.images[0].get_clim() == (0, black)


def test_reconstructions_lie_under_their_originals():
    x, x_hat = torch.eye(4)[:3], torch.zeros(3, 4)
    fig, ax = plots.figure()
    plots.reconstructions(ax, x, x_hat, (2, 2))
    page = ax.images[0].get_array()
    assert page.shape == (4, 6)
    for k in range(3):
        original = page[:2, 2 * k : 2 * k + 2].data.ravel()
        assert (original == x[k].cpu().numpy()).all()
    assert (page[2:].data == 0).all()
    fig.draw_without_rendering()
    heights = {t.get_text(): t.get_window_extent().y0 for t in ax.get_yticklabels()}
    assert heights["original"] > heights["reconstruction"]
    assert list(ax.get_xticks()) == []


def test_latent_manifold_puts_every_image_at_its_own_z():
    z1, z2 = torch.linspace(-3, 3, 4), torch.linspace(0, 1, 3)
    i, j = 2, 1
    images = torch.zeros(3, 4, 2, 3)
    images[i, j, 0, 2] = 1  # its upper right pixel
    fig, ax = plots.figure()
    plots.latent_manifold(ax, images.flatten(2), z1, z2, (2, 3))

    assert len(ax.images) == 1
    assert ax.images[0].get_extent() == pytest.approx((-4, 4, -0.25, 1.25))
    step1, step2 = 2.0, 0.5
    rows, columns = np.mgrid[0:2, 0:3]
    for row, column in itertools.product(range(3), range(4)):
        left, top = z1[column].item() - step1 / 2, z2[row].item() + step2 / 2
        x = left + (columns + 0.5) * step1 / 3
        y = top - (rows + 0.5) * step2 / 2
        dark = printed_at(fig, ax, np.stack([x, y], -1).reshape(-1, 2)).reshape(2, 3) < 0.1
        assert dark.sum() == ((row, column) == (i, j))
        assert dark[0, 2] == ((row, column) == (i, j))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_1$", "$z_2$")
    corner, right, up = ax.transData.transform([(0, 0), (step1 / 3, 0), (0, step2 / 2)])
    assert right[0] - corner[0] == pytest.approx(up[1] - corner[1])  # square pixels


def test_latent_manifold_takes_rows_one_after_the_other():
    images, z = torch.rand(6, 4), torch.linspace(0, 1, 3)
    (_, (a, b)) = plots.figure(1, 2)
    plots.latent_manifold(a, images, z, z[:2], (2, 2))
    plots.latent_manifold(b, images.reshape(2, 3, 4), z, z[:2], (2, 2))
    assert (a.images[0].get_array() == b.images[0].get_array()).all()


# Points and lines


def test_latent_scatter_draws_digits_as_digits_and_names_each_class_at_its_mean():
    z, y = latent_points()
    _, ax = plots.figure(height=5)
    plots.latent_scatter(ax, z, y)
    assert len(ax.collections) == 10
    shapes = [collection.get_paths()[0].vertices.tobytes() for collection in ax.collections]
    assert len(set(shapes)) == 10  # no two classes share a glyph
    for label, (collection, text) in enumerate(zip(ax.collections, ax.texts, strict=True)):
        points = z[y == label].numpy()
        assert (collection.get_offsets().data == points).all()
        assert text.get_text() == str(label)
        assert text.get_position() == pytest.approx(points.mean(0), abs=1e-6)
    assert ax.get_aspect() == 1
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_1$", "$z_2$")


def test_latent_scatter_draws_only_labels_that_occur():
    _, ax = plots.figure()
    plots.latent_scatter(ax, torch.rand(4, 2), torch.tensor([3, 3, 12, 3]))
    assert [text.get_text() for text in ax.texts] == ["3", "12"]


def test_colours_stand_out_from_white():
    def luminance(colour):
        c = np.array(mpl.colors.to_rgb(colour))
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    assert len(set(COLOURS)) == 10
    assert min(1.05 / (luminance(colour) + 0.05) for colour in COLOURS) >= 3


@pytest.mark.parametrize("validation", [True, False])
def test_training_curves_are_told_apart_without_colour_and_named_at_their_ends(validation):
    data = frame(validation)
    fig, ax = plots.figure()
    plots.training_curves(ax, data)
    names = {"elbo": "ELBO, training", "reconstruction": "reconstruction", "kl": "KL"}
    if validation:
        names["validation_elbo"] = "ELBO, validation"
    assert {text.get_text() for text in ax.texts} == set(names.values())
    looks = {(line.get_linestyle(), str(line._dash_pattern)) for line in ax.lines}
    assert len(looks) == len({line.get_marker() for line in ax.lines}) == len(names)
    for column, name in names.items():
        (line,) = [line for line in ax.lines if (line.get_ydata() == data[column]).all()]
        (text,) = [text for text in ax.texts if text.get_text() == name]
        assert text.xy == (line.get_xdata()[-1], line.get_ydata()[-1])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "nats per datapoint")
    fig.draw_without_rendering()
    assert overlapping(ax.texts) == []
    page = fig.bbox
    assert all(page.x0 <= box_of(t).x0 and box_of(t).x1 <= page.x1 for t in ax.texts)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2)])
def test_names_of_curves_never_collide_even_where_all_end_together(shape):
    flat = pd.DataFrame({"epoch": [1, 2]} | {c: [0.0, 1.0] for c in plots.CURVES})
    fig, axes = plots.figure(*shape)
    for ax in np.ravel(axes):
        plots.training_curves(ax, flat)
    fig.draw_without_rendering()
    for ax in np.ravel(axes):
        assert overlapping(ax.texts) == []


def test_training_curves_skip_what_was_not_measured():
    data = frame()
    data.loc[data.epoch % 10 != 0, "validation_elbo"] = np.nan
    _, ax = plots.figure()
    plots.training_curves(ax, data)
    (line,) = [line for line in ax.lines if len(line.get_xdata()) == 4]
    assert line.get_xdata().tolist() == [10, 20, 30, 40]


def test_training_curves_of_one_epoch():
    fig, ax = plots.figure()
    plots.training_curves(ax, frame(epochs=1))
    fig.draw_without_rendering()


# Diagrams


def drawn(name):
    fig, ax = plots.figure(height=DIAGRAMS[name])
    getattr(plots, name)(ax)
    return fig, ax, [text.get_text() for text in texts(fig)]


def correlated_density():
    """A Gaussian with variances 1 and 0.25 and covariance 0.3, on a grid that is not square."""
    z1 = torch.linspace(-6.0, 6.0, 401, dtype=torch.float64)
    z2 = torch.linspace(-3.0, 3.0, 301, dtype=torch.float64)
    precision = np.linalg.inv(np.array([[1.0, 0.3], [0.3, 0.25]]))
    points = np.stack(np.meshgrid(z1.cpu(), z2.cpu(), indexing="ij"), -1)
    squared = np.einsum("ijk,kl,ijl->ij", points, precision, points)
    return z1, z2, 7 * np.exp(-squared / 2), precision


@pytest.mark.parametrize("filled", [False, True])
def test_contours_of_a_gaussian_are_its_ellipses(filled):
    z1, z2, density, precision = correlated_density()
    _, ax = plots.figure()
    plots.contours(ax, z1, z2, density, mass=(0.9, 0.5), filled=filled, label="p")
    curves = [
        path.vertices[path.codes != path.CLOSEPOLY]
        for collection in ax.collections
        for path in collection.get_paths()
    ]
    radii = [np.einsum("ik,kl,il->i", c, precision, c) ** 0.5 for c in curves]
    expected = [(-2 * np.log(1 - m)) ** 0.5 for m in (0.9, 0.5)]
    assert len(radii) == 2
    for radius, value in zip(radii, expected, strict=True):
        np.testing.assert_allclose(radius, value, rtol=0.01)
    assert [text.get_text() for text in ax.legend().get_texts()] == ["p"]


def test_contours_of_the_whole_style():
    z1, z2, density, _ = correlated_density()
    _, ax = plots.figure()
    plots.contours(ax, z1, z2, density, mass=(0.5,), colour="#d55e00", style="--")
    (curve,) = ax.collections
    assert mpl.colors.to_hex(curve.get_edgecolor()[0]) == "#d55e00"
    assert curve.get_linestyle()[0][1] is not None  # dashed


def test_encoder_diagram_goes_from_x_to_a_density():
    _, _, words = drawn("encoder_diagram")
    for piece in ("x_1", r"\mu_1", r"\sigma_2", r"f_\phi(x)", r"q_\phi(z \mid x)", "z_1", "z_2"):
        assert any(piece in word for word in words), piece


def test_architecture_diagram_has_both_factors_the_draw_and_both_terms():
    _, _, words = drawn("architecture_diagram")
    for piece in (
        r"q_\phi(z \mid x) = \mathcal{N}(\mu, \Sigma)",
        r"z = \mu + L\,\varepsilon",
        r"\varepsilon \sim \mathcal{N}(0, I)",
        r"p_\theta(x \mid z)",
        "diagonal",
        "full",
        r"\Sigma",
        r"L^{\!\top}",
        r"\mathrm{KL}(q_\phi(z \mid x)",
        r"\log p_\theta(x \mid z)",
        "prior",
        "ELBO",
    ):
        assert any(piece in word for word in words), piece


def test_architecture_diagram_counts_the_parameters_as_the_families_do():
    from vaetutor.families import DiagonalNormal, FullNormal

    _, _, words = drawn("architecture_diagram")
    assert "diagonal, $P = 2D$" in words
    assert "full, $P = 2D + D(D-1)/2$" in words
    for dim in (1, 2, 5):
        assert DiagonalNormal(dim).n_parameters == 2 * dim
        assert FullNormal(dim).n_parameters == 2 * dim + dim * (dim - 1) // 2


@pytest.mark.parametrize("name", DIAGRAMS)
def test_nothing_in_a_diagram_lies_upon_its_words(name):
    fig, ax, _ = drawn(name)
    words = [(text.get_text(), box_of(text)) for text in texts(fig)]
    assert overlapping(texts(fig)) == []
    for word, box in words:
        assert fig.bbox.containsx(box.x0) and fig.bbox.containsx(box.x1), word
        assert fig.bbox.containsy(box.y0) and fig.bbox.containsy(box.y1), word

    for shape in ax.findobj(lambda artist: isinstance(artist, Circle | FancyBboxPatch)):
        inside = shape.get_window_extent()
        for word, box in words:
            kept = inside.x0 < box.x0 and box.x1 < inside.x1
            kept = kept and inside.y0 < box.y0 and box.y1 < inside.y1
            assert kept or not inside.overlaps(box), word

    # Lines along an axis, piece by piece; slanting ones only join nodes.
    pieces = []
    for line in ax.lines:
        pieces += itertools.pairwise(ax.transData.transform(line.get_xydata()))
    for arrow in ax.findobj(FancyArrowPatch):
        start, end = (ax.transData.transform(point) for point in arrow._posA_posB)
        if min(abs(start - end)) < 1e-6:
            pieces.append((start, end))
    assert len(pieces) > 8
    for start, end in pieces:
        line = mpl.transforms.Bbox([np.minimum(start, end) - 0.5, np.maximum(start, end) + 0.5])
        assert not [word for word, box in words if line.overlaps(box)]


# All figures


def test_every_word_is_at_reading_size():
    for name, fig in draw_everything():
        words = texts(fig)
        assert words or name == "image_grid"
        for text in words:
            assert text.get_fontsize() >= 9, (name, text.get_text())


def test_default_figure_fits_the_text_column():
    for _, fig in draw_everything():
        assert fig.get_figwidth() == 7


def test_matplotlib_is_left_as_it_was(shell):
    with mpl.rc_context({"font.size": 7.5, "axes.edgecolor": "pink", "mathtext.fontset": "stix"}):
        before = dict(mpl.rcParams)
        with shell_output():
            for _, fig in draw_everything():
                plots.show(fig, alt="anything")
        assert dict(mpl.rcParams) == before


def test_figures_do_not_depend_on_the_users_settings():
    expected = {name: pixels(fig) for name, fig in draw_styled()}
    unusual = {"font.size": 30, "axes.labelpad": 30, "axes.xmargin": 0.4, "lines.linewidth": 9}
    with plt.style.context(["dark_background", unusual]):
        found = {name: pixels(fig) for name, fig in draw_styled()}
    for name in expected:
        assert (found[name] == expected[name]).all(), name


def draw_styled():
    torch.manual_seed(0)
    for name, fig in draw_everything():
        with plots.style():
            fig.set_dpi(100)
            yield name, fig


# What reaches the page


def shell_output():
    from IPython.utils.capture import capture_output

    return capture_output()


def shown(vector: bool = False, alt: str = 'A line: "up" & <away>', draw=None, **size):
    with shell_output() as captured:
        fig, ax = plots.figure(**size)
        (draw or plots.encoder_diagram)(ax)
        plots.show(fig, alt=alt, vector=vector)
    (output,) = captured.outputs
    assert captured.stdout == captured.stderr == ""
    return output


def test_png_has_alternative_text_and_twice_the_pixels(shell):
    output = shown(width=5, height=3)
    assert set(output.data) == {"text/plain", "image/png"}
    assert output.metadata == {"image/png": {"alt": 'A line: "up" & <away>', "width": 480}}
    png = base64.b64decode(output.data["image/png"])
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    size = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    assert size == (960, 576)
    image = plt.imread(io.BytesIO(png))
    assert (image[[0, 0, -1, -1], [0, -1, 0, -1]] == 1).all()  # opaque white to the corners


def test_svg_has_alternative_text_where_it_is_inlined_too(shell):
    output = shown(vector=True)
    assert set(output.data) == {"text/plain", "image/svg+xml"}
    alt = 'A line: "up" & <away>'
    assert output.metadata == {"image/svg+xml": {"alt": alt, "width": 672}}
    svg = output.data["image/svg+xml"]
    import xml.etree.ElementTree as ET

    root = ET.fromstring(svg)
    assert root.tag.endswith("}svg")
    assert root.get("role") == "img"
    assert html.unescape(root.get("aria-label")) == alt
    assert "<text" not in svg  # letters are outlines: no font is needed
    assert not re.search(r"<dc:date>|20\d\d-\d\d", svg)


def test_alternative_text_is_what_a_plain_page_shows(shell):
    assert shown(alt="A circle.").data["text/plain"] == "A circle."


@pytest.mark.parametrize("alt", ["", "  \n", None])
def test_alternative_text_is_required(alt, shell):
    fig, _ = plots.figure()
    with pytest.raises(ValueError, match="alt"):
        plots.show(fig, alt=alt)
    with pytest.raises(TypeError):
        plots.show(fig)


def test_shown_figures_are_closed(shell):
    shown()
    assert plt.get_fignums() == []


def test_outside_ipython_show_is_silent(capfd):
    from IPython.core.getipython import get_ipython

    assert get_ipython() is None
    fig, _ = plots.figure()
    assert plots.show(fig, alt="nothing to see") is None
    assert capfd.readouterr() == ("", "")
    assert plt.get_fignums() == []


def test_same_figure_same_bytes_in_every_process():
    code = (
        "import hashlib, matplotlib; matplotlib.use('Agg'); from vaetutor import plots\n"
        "fig, ax = plots.figure(height=5.4); plots.architecture_diagram(ax)\n"
        "with plots.style(): image = plots._svg(fig, 'a') + str(plots.png(fig))\n"
        "digest = hashlib.sha256(image.encode()).hexdigest()"
    )
    here: dict[str, str] = {}
    exec(code, here)
    elsewhere = subprocess.run(
        [sys.executable, "-c", code + "; print(digest)"],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert elsewhere.stdout.strip() == here["digest"]


def test_import_of_the_package_loads_no_plotting():
    code = (
        "import sys, vaetutor\n"
        "print({'matplotlib', 'seaborn', 'vaetutor.plots', 'IPython'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Bad input

IMAGES, Z = torch.zeros(6, 4), torch.linspace(0, 1, 3)
NAN = torch.full((6, 4), torch.nan)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda ax: plots.image_grid(ax, IMAGES), ["images", "784", "(6, 4)"]),
        (lambda ax: plots.image_grid(ax, IMAGES[:0], (2, 2)), ["images", "(0, 4)"]),
        (lambda ax: plots.image_grid(ax, NAN, (2, 2)), ["images", "24 NaN"]),
        (lambda ax: plots.image_grid(ax, IMAGES, (2, 2), columns=0), ["columns", "0"]),
        (lambda ax: plots.reconstructions(ax, IMAGES, IMAGES[:5], (2, 2)), ["x_hat", "5"]),
        (lambda ax: plots.reconstructions(ax, IMAGES, NAN, (2, 2)), ["x_hat", "NaN"]),
        (lambda ax: plots.reconstructions(ax, IMAGES, IMAGES, (2, 3)), ["x must", "(2, 3)"]),
        (lambda ax: plots.latent_manifold(ax, IMAGES, Z, Z, (2, 2)), ["= 9", "6"]),
        (lambda ax: plots.latent_manifold(ax, IMAGES, Z, Z[:2]), ["images", "784"]),
        (lambda ax: plots.latent_manifold(ax, IMAGES, Z.flip(0), Z[:2], (2, 2)), ["z1"]),
        (lambda ax: plots.latent_manifold(ax, IMAGES, Z**2, Z[:2], (2, 2)), ["z1", "evenly"]),
        (lambda ax: plots.latent_manifold(ax, IMAGES, Z, Z[:1], (2, 2)), ["z2", "length 2"]),
        (lambda ax: plots.latent_scatter(ax, torch.zeros(5, 3), Z), ["z must", "(5, 3)"]),
        (lambda ax: plots.latent_scatter(ax, torch.zeros(5, 2), Z), ["y must", "5", "(3,)"]),
        (lambda ax: plots.latent_scatter(ax, torch.zeros(3, 2), Z), ["y must", "integer"]),
        (lambda ax: plots.latent_scatter(ax, NAN[:, :2], torch.arange(6)), ["z must", "NaN"]),
        (lambda ax: plots.contours(ax, Z, Z**2, torch.ones(3, 3)), ["z2", "evenly"]),
        (lambda ax: plots.contours(ax, Z, Z[:2], torch.ones(2, 3)), ["density", "(3, 2)"]),
        (lambda ax: plots.contours(ax, Z, Z, -torch.ones(3, 3)), ["density", "-1"]),
        (lambda ax: plots.contours(ax, Z, Z, torch.zeros(3, 3)), ["density", "not all 0"]),
        (lambda ax: plots.contours(ax, Z, Z, NAN[:3, :3]), ["density", "NaN"]),
        (lambda ax: plots.contours(ax, Z, Z, torch.ones(3, 3), mass=(0.5, 1)), ["mass", "1"]),
        (lambda ax: plots.training_curves(ax, pd.DataFrame()), ["elbo", "found none"]),
        (lambda ax: plots.training_curves(ax, frame()[["epoch"]]), ["curve", "found epoch"]),
        (lambda ax: plots.training_curves(ax, frame().drop(columns="epoch")), ["epoch", "kl"]),
        (lambda ax: plots.training_curves(ax, frame().assign(kl=np.nan)), ["kl", "finite"]),
    ],
)
def test_bad_input_is_named(draw, words):
    _, ax = plots.figure()
    with pytest.raises(ValueError) as error:
        draw(ax)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("arguments", [{"rows": 0}, {"cols": 0}, {"width": 0}, {"height": -1}])
def test_figure_needs_a_size(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        plots.figure(**arguments)
