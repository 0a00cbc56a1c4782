"""Live figures: the numbers they carry, and what a browser makes of them."""

import base64
import html
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributions as td
from torch import nn

import vaetutor as vt
from vaetutor import live

ROOT = Path(__file__).parents[1]
WORDS = {"alt": 'What it shows, "in words" & <signs>.', "caption": "What to do & what to see."}


def small_decoder(hidden=40):
    torch.manual_seed(0)
    decoder = nn.Sequential(vt.mlp(2, hidden, 784), vt.Bernoulli(784))
    with torch.no_grad():
        decoder[0][0].weight.mul_(3)
        decoder[0][2].weight.mul_(4)
    return decoder


def gaussian_bound(mean=0.4, variance=0.25, evidence=-2.0, **kwargs):
    z = torch.linspace(-10, 10, 1001, dtype=torch.float64)
    log_joint = td.Normal(mean, variance**0.5).log_prob(z) + evidence
    return live.bound(z, log_joint, view=(-3.0, 3.0), **kwargs, **WORDS)


def spectrum():
    falling = torch.logspace(2, -1, 24, dtype=torch.float64, device="cpu")
    return torch.cat([falling, torch.zeros(6, dtype=torch.float64, device="cpu")])


MAKERS = {
    "bound": lambda: gaussian_bound(mu=0.0, sd=0.8),
    "mean_field": lambda: live.mean_field(0.8, (0.5, 0.9), **WORDS),
    "reparameterisation": lambda: live.reparameterisation(
        torch.randn(200, device="cpu"), -2.0, **WORDS
    ),
    "rate_distortion": lambda: live.rate_distortion(
        spectrum(), 2.0, 12, {"other": (9.0, 70.0)}, **WORDS
    ),
    "latent_plane": lambda: live.latent_plane(
        small_decoder(), 1.5 * torch.randn(60, 2), torch.arange(60) % 10, **WORDS
    ),
}


@pytest.fixture
def figures():
    torch.manual_seed(1)
    with torch.device("cpu"):
        return {kind: make() for kind, make in MAKERS.items()}


# What Python puts into a figure


def test_a_figure_shows_itself_with_its_words(figures):
    for kind, figure in figures.items():
        shown = figure._repr_html_()
        assert figure.kind == kind and repr(figure) == WORDS["alt"]
        assert f'alt="{html.escape(WORDS["alt"])}"' in shown
        assert f"<figcaption>{html.escape(WORDS['caption'])}</figcaption>" in shown
        [numbers] = re.findall(r'class="vt-data">(.*?)</script>', shown)
        assert json.loads(numbers) == json.loads(json.dumps(figure.data))


def test_the_figures_of_the_book_are_small():
    found = []
    for notebook in sorted((ROOT / "book/notebooks").glob("*.ipynb")):
        for cell in json.loads(notebook.read_text())["cells"]:
            for output in cell.get("outputs", []):
                shown = "".join(output.get("data", {}).get("text/html", []))
                if '<figure class="vt-live"' in shown:
                    found += re.findall(r'data-kind="(\w+)"', shown)
                    assert len(shown) < 200_000, notebook
    assert {*found} == {*MAKERS}


def test_a_label_cannot_end_the_script():
    points = {"</script><b>": (1.0, 2.0)}
    with torch.device("cpu"):
        figure = live.rate_distortion(spectrum(), 2.0, 12, points, **WORDS)
    assert figure.html.count("</script>") == 2
    [numbers] = re.findall(r'class="vt-data">(.*?)</script>', figure.html)
    assert json.loads(numbers)["points"][0]["label"] == "</script><b>"


def test_a_figure_asks_for_nothing(figures):
    script = (ROOT / "vaetutor/live/live.js").read_text()
    for figure in figures.values():
        asked = re.findall(
            r"(?:src|href)=\"(?!data:)|https?://(?!www\.w3\.org/2000/svg)", figure.html
        )
        assert not asked
    assert not re.search(r"\b(fetch|XMLHttpRequest|import|require|eval)\b\s*\(", script)


def test_the_bound_of_a_gaussian_posterior_is_its_closed_form():
    figure = gaussian_bound(mu=-0.3, sd=0.9)
    posterior = td.Normal(0.4, 0.5)
    for check in figure.data["checks"]:
        q = td.Normal(check["set"]["mu"], check["set"]["sd"])
        gap = td.kl_divergence(q, posterior).item()
        assert check["expect"]["kl"] == pytest.approx(gap, abs=1e-5)
        assert check["expect"]["elbo"] == pytest.approx(-2.0 - gap, abs=1e-5)
        assert check["expect"]["total"] == pytest.approx(-2.0, abs=1e-6)


def test_a_bound_keeps_q_on_its_grid():
    figure = gaussian_bound()
    limits = figure.data["limits"]
    assert limits["mu"] == [-3.0, 3.0] and limits["sd"][1] == pytest.approx(7 / 6.5)
    with pytest.raises(ValueError, match="widen the grid"):
        gaussian_bound(sd=1.2)
    with pytest.raises(ValueError, match="widen the grid"):
        gaussian_bound(mu=3.5)


def test_mean_field_expects_the_closed_forms():
    for check in live.mean_field(0.7, (0.4, 1.1), **WORDS).data["checks"]:
        rho, a, b = (check["set"][name] for name in ("rho", "sd1", "sd2"))
        det = 1 - rho**2
        reverse = 0.5 * ((a**2 + b**2) / det - math.log(a**2 * b**2) + math.log(det) - 2)
        assert check["expect"]["reverse"] == pytest.approx(reverse, abs=1e-9)
        assert check["expect"]["price"] == pytest.approx(-0.5 * math.log(det), abs=1e-9)


def test_reparameterisation_expects_the_formulas():
    eps = torch.randn(100, dtype=torch.float64, device="cpu")
    for check in live.reparameterisation(eps, 1.5, **WORDS).data["checks"]:
        mu, s, found = check["set"]["mu"], check["set"]["s"], check["expect"]
        z = mu + s * eps
        score = (z - 1.5) ** 2 * (z - mu) / s**2
        assert found["exact"] == 2 * (mu - 1.5)
        assert found["path_mean"] == pytest.approx((2 * (z - 1.5)).mean().item(), abs=1e-6)
        assert found["score_mean"] == pytest.approx(score.mean().item(), abs=1e-6)
        assert found["score_variance"] == pytest.approx(score.var().item(), rel=1e-6)


def test_rate_distortion_expects_what_the_linear_model_has():
    torch.manual_seed(0)
    x = torch.randn(400, 6, dtype=torch.float64, device="cpu") @ torch.diag(
        torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.2], dtype=torch.float64, device="cpu")
    )
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    figure = live.rate_distortion(values, 1.5, 4, {}, **WORDS)
    for check in figure.data["checks"]:
        beta, found = check["set"]["beta"], check["expect"]
        best = vt.LinearGaussian.fit(x, 4, 1.5**0.5, beta)
        posterior = best.posterior(x, beta)
        rate = vt.kl(posterior, best.prior()).mean().item()
        assert found["rate"] == pytest.approx(rate, abs=1e-8)
        assert found["survivors"] == int((best.weight.norm(dim=0) > 1e-9).sum())
    [one] = [c["expect"] for c in figure.data["checks"] if c["set"]["beta"] == 1.0]
    fitted = vt.LinearGaussian.fit(x, 4, 1.5**0.5)
    assert one["elbo"] == pytest.approx(fitted.log_evidence(x).mean().item(), abs=1e-8)


def unpacked(packed, shape):
    kind, unit, text = packed
    return np.frombuffer(base64.b64decode(text), "<" + kind).astype(float).reshape(shape) * unit


def test_the_compressed_decoder_is_as_close_as_it_says():
    decoder = small_decoder()
    with torch.device("cpu"):
        figure = live.latent_plane(decoder, torch.zeros(3, 2), torch.arange(3), **WORDS)
    layers, error = figure.data["decoder"], figure.data["error"]
    assert 0 < error < 0.1
    places = 7 * torch.rand(500, 2, device="cpu") - 3.5
    hidden = np.maximum(places.numpy() @ unpacked(layers["w1"], (40, 2)).T, -1e9)
    hidden = np.maximum(hidden + unpacked(layers["b1"], 40), 0)
    code = hidden @ unpacked(layers["narrow"], (-1, 40)).T
    logits = code @ unpacked(layers["wide"], (784, -1)).T + unpacked(layers["bias"], 784)
    with torch.no_grad():
        truth = decoder(places).mean.numpy()
    assert np.abs(1 / (1 + np.exp(-logits)) - truth).max() < 1.5 * error


def test_labels_outside_the_square_are_left_out():
    z = torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, -3.6]], device="cpu")
    labels = torch.arange(3, device="cpu")
    figure = live.latent_plane(small_decoder(), z, labels, **WORDS)
    assert figure.data["points"] == [[0.0, 0.0, 0]]


def test_the_figure_leaves_the_decoder_as_it_was():
    decoder = small_decoder()
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    live.latent_plane(decoder, torch.zeros(2, 2), torch.zeros(2).long(), **WORDS)
    assert all(torch.equal(before[name], value) for name, value in decoder.state_dict().items())


GRID = torch.linspace(-10, 10, 101)
WRONG = {
    "uneven": (lambda: live.bound(GRID**3, GRID, view=(-1, 1), **WORDS), "evenly spaced"),
    "falling": (lambda: live.bound(-GRID, GRID, view=(-1, 1), **WORDS), "increasing"),
    "shapes": (lambda: live.bound(GRID, GRID[1:], view=(-1, 1), **WORDS), "one value for each z"),
    "nan": (
        lambda: live.bound(GRID, GRID.double() * math.nan, view=(-1, 1), **WORDS),
        "finite",
    ),
    "correlation": (lambda: live.mean_field(1.0, **WORDS), "correlation"),
    "scales": (lambda: live.mean_field(0.5, (0.0, 1.0), **WORDS), "sd"),
    "one draw": (lambda: live.reparameterisation(torch.zeros(1), 0.0, **WORDS), "two draws"),
    "far": (lambda: live.reparameterisation(torch.zeros(9), 9.0, **WORDS), "k must"),
    "rising": (
        lambda: live.rate_distortion(torch.arange(5.0), 1.0, 2, {}, **WORDS),
        "decreasing",
    ),
    "too many": (
        lambda: live.rate_distortion(torch.ones(3), 1.0, 4, {}, **WORDS),
        "latent_dim",
    ),
    "no noise": (lambda: live.rate_distortion(torch.ones(3), 0.0, 2, {}, **WORDS), "noise"),
    "three dimensions": (
        lambda: live.latent_plane(
            nn.Sequential(vt.mlp(3, 8, 784), vt.Bernoulli(784)),
            torch.zeros(2, 2),
            torch.zeros(2),
            **WORDS,
        ),
        "map 2 numbers",
    ),
    "deep": (
        lambda: live.latent_plane(
            nn.Sequential(vt.mlp(2, 8, 8, 784), vt.Bernoulli(784)),
            torch.zeros(2, 2),
            torch.zeros(2),
            **WORDS,
        ),
        "mlp",
    ),
    "labels": (
        lambda: live.latent_plane(small_decoder(), torch.zeros(2, 2), torch.zeros(3), **WORDS),
        "z must be",
    ),
    "no words": (lambda: live.mean_field(alt=" ", caption="x"), "alt"),
    "no caption": (lambda: live.mean_field(alt="x", caption=""), "caption"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused(name):
    call, message = WRONG[name]
    with torch.device("cpu"), pytest.raises(ValueError, match=message):
        call()


# What a browser makes of it


@pytest.fixture
def page(chromium, tmp_path, figures):
    """All figures in one page without anything else, as a notebook would show them."""
    file = tmp_path / "page.html"
    shown = "".join(f"<div id='{kind}'>{figure.html}</div>" for kind, figure in figures.items())
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Live</title>'
    file.write_text(f"{head}<body style='margin: 8px'>{shown}", encoding="utf-8")
    context = chromium.new_context(viewport={"width": 800, "height": 900}, has_touch=True)
    opened = context.new_page()
    trouble = []
    opened.on("pageerror", lambda error: trouble.append(str(error)))
    opened.on("console", lambda message: trouble.append(message.text))
    opened.on(
        "request",
        lambda asked: asked.url.startswith(("file:", "data:")) or trouble.append(asked.url),
    )
    opened.goto(file.as_uri())
    yield opened
    assert not trouble
    context.close()


def value(page, kind, name):
    found = page.locator(f"#{kind} .vt-results output[data-name={name}]")
    return float(found.get_attribute("data-value"))


SET = """([root, values]) => {
  for (const [name, value] of Object.entries(values)) {
    const input = root.querySelector(`input[data-name=${name}]`);
    input.step = "any";
    input.value = name === "beta" ? Math.log(value) : value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }
  return Object.fromEntries([...root.querySelectorAll(".vt-results output")].map((output) =>
    [output.dataset.name, [output.dataset.value, output.textContent]]));
}"""


def disagreements(figure):
    """Where the results of a live figure, a Playwright locator, differ from those of Python."""
    data = json.loads(figure.locator(".vt-data").text_content())
    assert data["checks"]
    wrong = []
    for check in data["checks"]:
        root = figure.element_handle()
        found = figure.page.evaluate(SET, [root, check["set"]])
        for name, expected in check["expect"].items():
            number, shown = found[name]
            if not abs(float(number) - expected) <= check["tolerance"]:
                wrong.append((check["set"], name, expected, number))
            digits = len(shown.partition(".")[2])
            if abs(float(shown.replace("−", "-")) - float(number)) > 0.51 * 10**-digits:
                wrong.append((check["set"], name, number, shown))
    return wrong


@pytest.mark.parametrize("kind", MAKERS)
def test_the_browser_finds_the_numbers_of_python(page, kind):
    assert disagreements(page.locator(f"#{kind} .vt-live")) == []


def test_the_figures_on_the_pages_show_the_numbers_of_their_cells(chromium, site):
    kinds = set()
    for path in site:
        if '<figure class="vt-live"' not in path.read_text():
            continue
        page = chromium.new_page()
        page.goto(path.as_uri())
        for figure in page.locator(".vt-live").all():
            kinds.add(figure.get_attribute("data-kind"))
            assert disagreements(figure) == [], path
        page.close()
    assert kinds == {*MAKERS}


def test_a_wrong_number_would_be_seen(page):
    page.evaluate(
        """() => { const data = document.querySelector("#mean_field .vt-data");
        data.textContent = data.textContent.replace(/"reverse":([\\d.]+)/, '"reverse":0.123'); }"""
    )
    [(_, name, expected, _)] = disagreements(page.locator("#mean_field .vt-live"))
    assert (name, expected) == ("reverse", 0.123)


def test_the_sum_of_the_bound_never_moves(page):
    for sd in (0.05, 0.3, 1.0):
        for mu in (-3.0, -1.0, 2.5):
            root = page.locator("#bound .vt-live").element_handle()
            page.evaluate(SET, [root, {"mu": mu, "sd": sd}])
            assert value(page, "bound", "total") == pytest.approx(-2.0, abs=1e-6)


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_climbing_ends_at_the_posterior(page, motion):
    """At once for who wants no motion, step by step for others."""
    page.emulate_media(reduced_motion=motion)
    kl = "document.querySelector('#bound output[data-name=kl]').dataset.value"
    at_once = page.evaluate(
        f"() => {{ document.querySelector('#bound button').click(); return {kl} }}"
    )
    assert (float(at_once) < 1e-6) == (motion == "reduce")
    page.wait_for_function(f"+{kl} < 1e-6", timeout=10_000)
    root = "#bound input[data-name={}]"
    assert float(page.input_value(root.format("mu"))) == pytest.approx(0.4, abs=0.01)
    assert float(page.input_value(root.format("sd"))) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("mu", [-3.0, 3.0])
@pytest.mark.parametrize("sd", [0.03, 1.0])
def test_climbing_arrives_from_far_out(page, mu, sd):
    page.emulate_media(reduced_motion="reduce")
    root = page.locator("#bound .vt-live").element_handle()
    page.evaluate(SET, [root, {"mu": mu, "sd": sd}])
    page.get_by_role("button", name="Climb the ELBO").click()
    assert value(page, "bound", "kl") < 1e-6


def test_the_buttons_find_the_best_mean_field(page):
    page.get_by_role("button", name="Best q for KL(q ‖ p)").click()
    assert value(page, "mean_field", "reverse") == pytest.approx(-0.5 * math.log(0.36), abs=1e-9)
    page.get_by_role("button", name="Best q for KL(p ‖ q)").click()
    assert value(page, "mean_field", "forward") == pytest.approx(-0.5 * math.log(0.36), abs=1e-9)


FIRST = {  # a slider of each figure, and a result that it changes
    "bound": ("mu", "elbo"),
    "mean_field": ("rho", "price"),
    "reparameterisation": ("mu", "exact"),
    "rate_distortion": ("beta", "rate"),
    "latent_plane": ("z1", "ink"),
}


@pytest.mark.parametrize("kind", FIRST)
def test_keys_move_every_figure(page, kind):
    slider, result = FIRST[kind]
    page.locator(f"#{kind} input[data-name={slider}]").focus()
    before = value(page, kind, result)
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert value(page, kind, result) != before


HANDLES = {  # what can be dragged, by how much, and a result that it changes
    "bound": ("mu", 40, 0, "elbo"),
    "mean_field": ("sd1", 25, 0, "reverse"),
    "reparameterisation": ("mu", 40, 0, "exact"),
    "rate_distortion": ("level", 0, -40, "rate"),
    "latent_plane": ("plane", 60, 30, "ink"),
}


def centre(page, kind, drag):
    """Where on the screen the middle of what can be dragged is."""
    box = page.locator(f"#{kind} [data-drag={drag}]").last
    box.scroll_into_view_if_needed()
    at = box.bounding_box()
    return at["x"] + at["width"] / 2, at["y"] + at["height"] / 2


@pytest.mark.parametrize("kind", HANDLES)
def test_the_pointer_moves_every_figure(page, kind):
    drag, right, down, result = HANDLES[kind]
    x, y = centre(page, kind, drag)
    before = value(page, kind, result)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right, y + down, steps=4)
    page.mouse.up()
    after = value(page, kind, result)
    assert after != before
    page.mouse.move(x, y, steps=2)  # the button is up: nothing follows
    assert value(page, kind, result) == after


@pytest.mark.parametrize("kind", HANDLES)
def test_a_finger_moves_every_figure(page, kind):
    drag, right, down, result = HANDLES[kind]
    x, y = centre(page, kind, drag)
    before, top = value(page, kind, result), page.evaluate("scrollY")
    session = page.context.new_cdp_session(page)

    def touch(kind, *points):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    touch("touchStart", {"x": x, "y": y})
    for part in (0.25, 0.5, 0.75, 1.0):
        touch("touchMove", {"x": x + part * right, "y": y + part * down})
    touch("touchEnd")
    assert value(page, kind, result) != before
    assert page.evaluate("scrollY") == top, "the page scrolled away under the finger"


def test_new_noise_and_the_old_one_again(page):
    before = value(page, "reparameterisation", "path_mean")
    page.get_by_role("button", name="New noise").click()
    assert value(page, "reparameterisation", "path_mean") != before
    page.get_by_role("button", name="The first noise again").click()
    assert value(page, "reparameterisation", "path_mean") == before


def test_every_control_has_a_name(page):
    sliders = page.get_by_role("slider").all()
    assert len(sliders) == page.locator("input").count()
    for control in [*sliders, *page.get_by_role("button").all()]:
        name = control.evaluate("e => e.labels?.[0]?.textContent ?? e.textContent")
        assert name.strip()
    assert all(p.get_attribute("aria-label") for p in page.locator("svg, canvas").all())


@pytest.mark.parametrize("width", [320, 390, 800])
def test_a_figure_fits_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for svg in page.locator("svg").all():
        assert svg.bounding_box()["width"] > 0.6 * min(width, 400)
        drawn = "e => e.viewBox.baseVal.width - e.getBoundingClientRect().width"
        assert svg.evaluate(drawn) < 1, "made smaller, and its text with it"


def test_paper_and_a_page_without_scripts_show_the_still_picture(page, chromium):
    still, stage = page.locator("#bound .vt-still"), page.locator("#bound .vt-stage")
    assert not still.is_visible() and stage.is_visible()
    page.emulate_media(media="print")
    assert still.is_visible() and not stage.is_visible()
    assert not page.locator("#bound .vt-controls").is_visible()
    with chromium.new_context(java_script_enabled=False) as context:
        plain = context.new_page()
        plain.goto(page.url)
        assert plain.locator("#bound .vt-still").is_visible()
        assert plain.locator("#bound .vt-still").bounding_box()["height"] > 100
