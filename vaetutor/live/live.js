// Live figures without a kernel: what `vaetutor.live` writes into a page comes to life here.
//
// Each figure holds its numbers as JSON. A slider for every quantity makes it usable by keyboard
// and by touch; dragging in the picture moves the same sliders. An <output> for every result holds
// the full number in data-value, which the tests compare with the values that Python computed.
(() => {
  "use strict";

  const STYLE = `
.vt-live { margin: 1.2rem 0; max-width: 44rem; font-size: 0.95rem; }
.vt-live[data-ready] .vt-still { display: none; }
.vt-live .vt-still { max-width: 100%; height: auto; }
.vt-live .vt-stage { display: flex; flex-wrap: wrap; gap: 0.5rem 1rem; align-items: center; justify-content: center; }
.vt-live svg { display: block; max-width: 100%; overflow: visible; user-select: none; -webkit-user-select: none; }
.vt-live svg text { fill: currentColor; font: 13px system-ui, sans-serif; }
.vt-live svg .vt-digit { font-size: 12px; opacity: 0.75; }
.vt-live .vt-axis, .vt-live .vt-ink { stroke: currentColor; fill: none; stroke-width: 1.5; }
.vt-live .vt-axis { stroke-width: 1; }
.vt-live .vt-faint { stroke: currentColor; opacity: 0.25; fill: none; }
.vt-live .vt-area { fill: currentColor; opacity: 0.15; stroke: none; }
.vt-live .vt-q { stroke: #0173b2; stroke: color-mix(in srgb, #0173b2 75%, currentColor); fill: none; stroke-width: 2.5; stroke-dasharray: 7 4; }
.vt-live .vt-fill-q { fill: #0173b2; fill: color-mix(in srgb, #0173b2 75%, currentColor); }
.vt-live .vt-other { stroke: #d55e00; stroke: color-mix(in srgb, #d55e00 75%, currentColor); fill: none; stroke-width: 2; }
.vt-live .vt-fill-other { fill: #d55e00; fill: color-mix(in srgb, #d55e00 75%, currentColor); }
.vt-live .vt-level { stroke-width: 2.5; stroke-dasharray: 7 4; }
.vt-live svg .vt-halo { paint-order: stroke; stroke: var(--pst-color-background, Canvas); stroke-width: 4; }
.vt-live .vt-handle { cursor: grab; touch-action: none; stroke: currentColor; stroke-width: 1.5; }
.vt-live .vt-pad { fill: transparent; cursor: crosshair; touch-action: none; }
.vt-live canvas { image-rendering: pixelated; border: 1px solid currentColor; width: 11rem; height: 11rem; }
.vt-live .vt-controls { display: grid; gap: 0.25rem 0.75rem; grid-template-columns: max-content minmax(6rem, 1fr) 4.5em; align-items: center; margin: 0.5rem 0; }
.vt-live .vt-controls input { width: 100%; min-height: 1.75rem; margin: 0; accent-color: #0173b2; }
.vt-live .vt-controls output, .vt-live .vt-results output { font-variant-numeric: tabular-nums; }
.vt-live .vt-buttons { display: flex; flex-wrap: wrap; gap: 0.5rem; margin: 0.5rem 0; }
.vt-live button { font: inherit; color: inherit; background: transparent; border: 1px solid currentColor; border-radius: 0.3rem; padding: 0.25rem 0.7rem; min-height: 1.75rem; cursor: pointer; }
.vt-live button:hover { text-decoration: underline; }
.vt-live :is(input, button):focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
.vt-live .vt-results { display: flex; flex-wrap: wrap; gap: 0.25rem 1.5rem; margin: 0.5rem 0; }
.vt-live .vt-results label { white-space: nowrap; }
.vt-live .vt-results output { display: inline-block; min-width: 4em; font-weight: 600; }
.vt-live figcaption { font-size: 0.95em; margin-top: 0.5rem; text-align: left; }
@media print {
  .vt-live .vt-stage, .vt-live .vt-controls, .vt-live .vt-buttons, .vt-live .vt-results { display: none; }
  .vt-live[data-ready] .vt-still { display: block; }
}`;

  const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const mean = (values) => sum(values) / values.length;
  const variance = (values) => {
    const centre = mean(values);
    return sum(values.map((value) => (value - centre) ** 2)) / (values.length - 1);
  };
  const minus = (text) => text.replace("-", "−");
  const format = (value, digits) => minus(value.toFixed(digits)).replace(/^−(0\.?0*)$/, "$1");

  function node(name, attributes = {}, parent = null, text = "") {
    const svg = "svg g path line circle rect text title".split(" ").includes(name);
    const made = svg
      ? document.createElementNS("http://www.w3.org/2000/svg", name)
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    parent?.append(made);
    return made;
  }

  // A curve through points; it breaks off where one is null.
  function path(points) {
    let pen = "M";
    let drawn = "";
    for (const point of points) {
      if (point) drawn += `${pen}${point[0].toFixed(2)} ${point[1].toFixed(2)}`;
      pen = point ? "L" : "M";
    }
    return drawn;
  }

  // A linear map between numbers and pixels along one axis.
  function scale(low, high, from, to) {
    const pixel = (value) => from + ((value - low) / (high - low)) * (to - from);
    pixel.invert = (place) => low + ((place - from) / (to - from)) * (high - low);
    return Object.assign(pixel, { low, high, from, to });
  }

  function ticks(low, high, about = 6) {
    const rough = (high - low) / about;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9; i++) found.push(i * step);
    return found.map((value) => [value, minus(String(+value.toPrecision(6)))]);
  }

  function xAxis(parent, x, top, name, marks = ticks(x.low, x.high, x.to - x.from < 300 ? 4 : 7)) {
    node("line", { class: "vt-axis", x1: x.from, x2: x.to, y1: top, y2: top }, parent);
    for (const [value, label] of marks) {
      const at = x(value);
      node("line", { class: "vt-axis", x1: at, x2: at, y1: top, y2: top + 4 }, parent);
      node("text", { x: at, y: top + 21, "text-anchor": "middle" }, parent, label);
    }
    node("text", { x: x.to, y: top + 37, "text-anchor": "end" }, parent, name);
  }

  function yAxis(parent, y, left, name, marks = ticks(y.low, y.high, 5)) {
    node("line", { class: "vt-axis", x1: left, x2: left, y1: y.from, y2: y.to }, parent);
    for (const [value, label] of marks) {
      const at = y(value);
      node("line", { class: "vt-axis", x1: left - 4, x2: left, y1: at, y2: at }, parent);
      node("text", { x: left - 7, y: at + 4, "text-anchor": "end" }, parent, label);
    }
    node("text", { x: left, y: y.to - 8, "text-anchor": "start" }, parent, name);
  }

  // One figure: its stage, controls and results.
  class Figure {
    constructor(root) {
      this.root = root;
      this.data = JSON.parse(root.querySelector(".vt-data").textContent);
      this.values = {};
      this.inputs = {};
      this.outputs = {};
      const still = root.querySelector(".vt-still");
      this.stage = node("div", { class: "vt-stage" });
      this.svg = node("svg", { role: "img", "aria-label": still.alt }, this.stage);
      // The picture is drawn anew at every change. What a finger holds must stay, and must say that
      // the touch is not meant for the page, or the browser scrolls it away.
      this.art = node("g", {}, this.svg);
      this.grips = node("g", {}, this.svg);
      const mine = (event) => event.preventDefault();
      this.grips.addEventListener("touchstart", mine, { passive: false });
      this.controls = node("div", { class: "vt-controls" });
      this.buttons = node("div", { class: "vt-buttons" });
      this.results = node("div", { class: "vt-results" });
      still.after(this.stage, this.controls, this.buttons, this.results);
      this.id = "vt-" + (Figure.count = (Figure.count ?? 0) + 1);
    }

    // A slider. With `log`, its position is the logarithm of the value.
    control(name, label, { min, max, value, step = 0.01, log = false, digits = 2 }) {
      const id = `${this.id}-${name}`;
      node("label", { for: id }, this.controls, label);
      const [low, high] = log ? [Math.log(min), Math.log(max)] : [min, max];
      const input = node(
        "input",
        { type: "range", id, min: low, max: high, step: log ? "any" : step, "data-name": name },
        this.controls,
      );
      const shown = node("output", { for: id, "aria-hidden": "true" }, this.controls);
      if (log) {
        // A browser moves a slider of free step by an arbitrary amount at an arrow key.
        input.addEventListener("keydown", (event) => {
          const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
          if (!by) return;
          event.preventDefault();
          this.set({ [name]: this.values[name] * Math.exp((by * (high - low)) / 100) });
        });
      }
      input.addEventListener("input", () => {
        this.values[name] = log ? Math.exp(+input.value) : +input.value;
        this.changed();
      });
      this.inputs[name] = { input, shown, min, max, log, digits };
      this.values[name] = value;
    }

    button(label, action) {
      node("button", { type: "button" }, this.buttons, label).addEventListener("click", action);
    }

    result(name, label, digits = 3) {
      const id = `${this.id}-${name}`;
      const line = node("label", { for: id }, this.results, label + " ");
      this.outputs[name] = node("output", { id, "data-name": name, "data-digits": digits }, line);
    }

    show(results) {
      for (const [name, value] of Object.entries(results)) {
        const output = this.outputs[name];
        output.dataset.value = value;
        output.textContent =
          typeof value === "number" ? format(value, +output.dataset.digits) : value;
      }
    }

    set(values) {
      for (const [name, value] of Object.entries(values)) {
        const { min, max } = this.inputs[name];
        this.values[name] = clamp(value, min, max);
      }
      this.changed();
    }

    changed() {
      for (const [name, { input, shown, log, digits }] of Object.entries(this.inputs)) {
        const value = this.values[name];
        input.value = log ? Math.log(value) : value;
        shown.textContent = format(value, digits);
        input.setAttribute("aria-valuetext", shown.textContent);
      }
      this.update(this.values);
    }

    // Where the pointer is, in the pixels of the drawing.
    place(event) {
      const box = this.svg.getBoundingClientRect();
      const shrink = this.width / box.width;
      return [(event.clientX - box.left) * shrink, (event.clientY - box.top) * shrink];
    }

    // `move` gets the place of a pointer that went down on an element with this data-drag.
    draggable(moves) {
      let move = null;
      this.svg.addEventListener("pointerdown", (event) => {
        move = moves[event.target.dataset?.drag];
        if (!move) return;
        event.preventDefault();
        this.svg.setPointerCapture(event.pointerId);
        move(...this.place(event));
      });
      this.svg.addEventListener("pointermove", (event) => {
        if (move) move(...this.place(event));
      });
      for (const end of ["pointerup", "pointercancel"]) {
        this.svg.addEventListener(end, () => (move = null));
      }
    }

    handle(drag, x, y, kind) {
      const look = { class: `vt-handle ${kind}`, "data-drag": drag, r: 9 };
      const grip =
        this.grips.querySelector(`[data-drag=${drag}]`) ?? node("circle", look, this.grips);
      grip.setAttribute("cx", x);
      grip.setAttribute("cy", y);
    }

    resize(width, height) {
      this.width = width;
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.svg.setAttribute("width", width);
      this.svg.setAttribute("height", height);
    }

    // `layout` draws what depends on the width alone and calls for the rest.
    start() {
      this.root.dataset.ready = "";
      let last = 0;
      const fit = () => {
        const room = Math.round(clamp(this.stage.clientWidth, 280, 680));
        if (room === last) return;
        last = room;
        this.layout(room);
        this.changed();
      };
      fit();
      new ResizeObserver(fit).observe(this.stage);
    }
  }

  // One number z: posterior, Gaussian q, and the two terms of log p(x).
  class Bound extends Figure {
    constructor(root) {
      super(root);
      const { z, log_joint: joint, view, mu, sd, limits } = this.data;
      this.step = z[1] - z[0];
      const top = Math.max(...joint);
      this.logEvidence = top + Math.log(sum(joint.map((l) => Math.exp(l - top))) * this.step);
      this.posterior = joint.map((l) => Math.exp(l - this.logEvidence));
      this.view = view;
      this.control("mu", "mean μ", { min: limits.mu[0], max: limits.mu[1], value: mu });
      this.control("sd", "scale σ", { min: limits.sd[0], max: limits.sd[1], value: sd });
      this.button("Climb the ELBO from here", () => this.climb());
      this.result("elbo", "ELBO");
      this.result("kl", "KL(q ‖ posterior)");
      this.result("total", "ELBO + KL");
      this.draggable({
        mu: (x) => this.set({ mu: this.x.invert(x) }),
        sd: (x) => this.set({ sd: Math.abs(this.x.invert(x) - this.values.mu) }),
      });
    }

    terms({ mu, sd }) {
      const { z, log_joint: joint } = this.data;
      const constant = Math.log(sd) + 0.5 * Math.log(2 * Math.PI);
      let elbo = 0;
      let kl = 0;
      for (let i = 0; i < z.length; i++) {
        const logQ = -0.5 * ((z[i] - mu) / sd) ** 2 - constant;
        const mass = Math.exp(logQ) * this.step;
        elbo += mass * (joint[i] - logQ);
        kl += mass * (logQ - (joint[i] - this.logEvidence));
      }
      return { elbo, kl, total: elbo + kl };
    }

    // Gradient ascent in (μ, log σ), each step halved until it goes up.
    climb() {
      let rate = 0.2;
      const at = (mu, log) => this.terms({ mu, sd: Math.exp(log) }).elbo;
      const step = () => {
        const { mu, sd } = this.values;
        const log = Math.log(sd);
        const h = 1e-4;
        const slopes = [
          (at(mu + h, log) - at(mu - h, log)) / (2 * h),
          (at(mu, log + h) - at(mu, log - h)) / (2 * h),
        ];
        // Short steps: from far out a long one would jump to the hump on the other side.
        const longest = 0.1 / Math.hypot(...slopes);
        for (rate = Math.min(rate * 2, 0.5, longest); rate > 1e-9; rate /= 2) {
          const [m, l] = [mu + rate * slopes[0], log + rate * slopes[1]];
          if (at(m, l) > at(mu, log)) {
            this.set({ mu: m, sd: Math.exp(l) });
            return Math.hypot(...slopes) > 1e-5;
          }
        }
        return false;
      };
      if (calm()) {
        for (let i = 0; i < 500 && step(); i++);
        return;
      }
      let left = 300;
      const tick = () => step() && left-- > 0 && requestAnimationFrame(tick);
      tick();
    }

    layout(width) {
      this.resize(width, 322);
      this.x = scale(...this.view, 16, width - 16);
      const densest = Math.max(...this.posterior);
      this.y = scale(0, densest * 1.35, 190, 30);
      this.bar = scale(this.logEvidence - 5, this.logEvidence + 0.5, 16, width - 16);
    }

    update(values) {
      const { x, y, bar, art: svg } = this;
      svg.replaceChildren();
      const inside = (z) => z >= this.view[0] && z <= this.view[1];
      const points = this.data.z
        .map((z, i) => [z, this.posterior[i]])
        .filter(([z]) => inside(z))
        .map(([z, density]) => [x(z), y(density)]);
      node("path", { class: "vt-area", d: path(points) + `L${x.to} ${y(0)}L${x.from} ${y(0)}Z` }, svg);
      node("path", { class: "vt-ink", d: path(points) }, svg);
      const { mu, sd } = values;
      const q = (z) => Math.exp(-0.5 * ((z - mu) / sd) ** 2) / (sd * Math.sqrt(2 * Math.PI));
      // A narrow q is taller than the drawing: its curve goes out at the top.
      const high = y.high;
      const curve = [];
      for (let i = 0; i <= 300; i++) {
        const z = this.view[0] + (i / 300) * (this.view[1] - this.view[0]);
        curve.push(q(z) <= high ? [x(z), y(q(z))] : null);
      }
      node("path", { class: "vt-q", d: path(curve) }, svg);
      xAxis(svg, x, y(0), "z");
      node("text", { x: x.from, y: 12 }, svg, "posterior: solid line, q: dashed line");
      this.handle("mu", x(mu), y(0), "vt-fill-q");
      // On the side on which it stays in the picture.
      const side = mu + sd > this.view[1] ? mu - sd : mu + sd;
      this.handle("sd", x(side), y(Math.min(q(side), high)), "vt-fill-other");

      const terms = this.terms(values);
      const low = Math.max(terms.elbo, bar.low);
      const row = { y: 252, height: 22 };
      node("rect", { class: "vt-fill-q", x: bar.from, width: bar(low) - bar.from, ...row }, svg);
      const gap = Math.max(0, bar(this.logEvidence) - bar(low));
      node("rect", { class: "vt-other", x: bar(low), width: gap, ...row }, svg);
      for (let at = bar(low) + 6; at < bar(low) + gap; at += 8) {
        node("line", { class: "vt-other", x1: at, x2: at - 6, y1: 252, y2: 274 }, svg);
      }
      const edge = bar(this.logEvidence);
      node("line", { class: "vt-ink", x1: edge, x2: edge, y1: 244, y2: 282 }, svg);
      node("text", { x: edge, y: 240, "text-anchor": "end" }, svg, "log p(x)");
      node("text", { x: bar.from, y: 240 }, svg, terms.elbo < bar.low ? "◀ ELBO, further left" : "ELBO");
      if (gap > 120 && (this.width > 520 || terms.elbo > bar.low)) {
        node("text", { x: bar(low) + gap / 3, y: 240, "text-anchor": "middle" }, svg, "KL");
      }
      xAxis(svg, bar, 282, "nats");
      this.show(terms);
    }
  }

  // A Gaussian of two correlated numbers, and a diagonal q.
  class MeanField extends Figure {
    constructor(root) {
      super(root);
      const { correlation, sd } = this.data;
      this.control("rho", "correlation ρ", { min: -0.99, max: 0.99, value: correlation });
      this.control("sd1", "σ₁ of q", { min: 0.05, max: 1.6, value: sd[0] });
      this.control("sd2", "σ₂ of q", { min: 0.05, max: 1.6, value: sd[1] });
      this.button("Best q for KL(q ‖ p)", () => {
        const best = Math.sqrt(1 - this.values.rho ** 2);
        this.set({ sd1: best, sd2: best });
      });
      this.button("Best q for KL(p ‖ q)", () => this.set({ sd1: 1, sd2: 1 }));
      this.result("reverse", "KL(q ‖ p)");
      this.result("forward", "KL(p ‖ q)");
      this.result("price", "smallest KL(q ‖ p)");
      this.draggable({
        sd1: (x) => this.set({ sd1: Math.abs(this.x.invert(x)) / this.radius }),
        sd2: (_, y) => this.set({ sd2: Math.abs(this.y.invert(y)) / this.radius }),
      });
      this.radius = Math.sqrt(-2 * Math.log(0.1)); // encloses 90 per cent
    }

    layout(width) {
      const side = Math.min(width, 400);
      this.resize(side, side + 30);
      this.x = scale(-3.5, 3.5, 30, side - 10);
      this.y = scale(-3.5, 3.5, side - 10, 30);
    }

    ellipse(a, b, c, radius) {
      // Columns (a, b), (0, c) of the factor of the covariance.
      const points = [];
      for (let i = 0; i <= 120; i++) {
        const angle = (i / 120) * 2 * Math.PI;
        const [u, v] = [radius * Math.cos(angle), radius * Math.sin(angle)];
        points.push([this.x(a * u), this.y(b * u + c * v)]);
      }
      return path(points) + "Z";
    }

    update({ rho, sd1, sd2 }) {
      const { art: svg, x, y, radius } = this;
      svg.replaceChildren();
      xAxis(svg, x, y.from, "z₁");
      yAxis(svg, y, x.from, "z₂");
      const rest = Math.sqrt(1 - rho ** 2);
      const half = Math.sqrt(-2 * Math.log(0.5));
      for (const r of [radius, half]) {
        node("path", { class: "vt-area", d: this.ellipse(1, rho, rest, r) }, svg);
        node("path", { class: "vt-ink", d: this.ellipse(1, rho, rest, r) }, svg);
        node("path", { class: "vt-q", d: this.ellipse(sd1, 0, sd2, r) }, svg);
      }
      this.handle("sd1", x(radius * sd1), y(0), "vt-fill-q");
      this.handle("sd2", x(0), y(radius * sd2), "vt-fill-q");
      const determinant = 1 - rho ** 2;
      const [v1, v2] = [sd1 ** 2, sd2 ** 2];
      this.show({
        reverse:
          0.5 * ((v1 + v2) / determinant - Math.log(v1 * v2) + Math.log(determinant) - 2),
        forward: 0.5 * (1 / v1 + 1 / v2 + Math.log(v1 * v2) - Math.log(determinant) - 2),
        price: -0.5 * Math.log(determinant),
      });
    }
  }

  // The same noise moved to N(μ, s²), and two gradients in μ of E (z - k)².
  class Reparameterisation extends Figure {
    constructor(root) {
      super(root);
      const { eps, mu, s } = this.data;
      this.eps = eps;
      this.control("mu", "mean μ", { min: -3, max: 3, value: mu });
      this.control("s", "scale s", { min: 0.2, max: 2, value: s });
      this.button("New noise", () => {
        this.eps = this.eps.map(() => {
          const size = Math.sqrt(-2 * Math.log(1 - Math.random()));
          return size * Math.cos(2 * Math.PI * Math.random());
        });
        this.changed();
      });
      this.button("The first noise again", () => {
        this.eps = eps;
        this.changed();
      });
      this.result("exact", "exact gradient", 2);
      this.result("path_mean", "pathwise: mean", 2);
      this.result("path_variance", "pathwise: variance", 1);
      this.result("score_mean", "score function: mean", 2);
      this.result("score_variance", "score function: variance", 1);
      this.draggable({ mu: (x) => this.set({ mu: this.x.invert(x) }) });
    }

    layout(width) {
      this.resize(width, 402);
      this.x = scale(-10, 10, 16, width - 16);
    }

    histogram(values, exact, axis, top, kind, label) {
      const bins = 48;
      const counts = new Array(bins).fill(0);
      for (const value of values) {
        const share = (value - axis.low) / (axis.high - axis.low);
        counts[clamp(Math.floor(share * bins), 0, bins - 1)]++;
      }
      const y = scale(0, Math.max(...counts), top + 80, top + 18);
      const wide = (axis.to - axis.from) / bins;
      counts.forEach((count, i) => {
        if (!count) return;
        const box = { x: axis.from + i * wide, width: wide * 0.9, y: y(count) };
        node("rect", { class: kind, ...box, height: y(0) - y(count) }, this.art);
      });
      node("text", { x: axis.from, y: top + 12 }, this.art, label);
      const at = axis(exact);
      node("line", { class: "vt-ink", x1: at, x2: at, y1: top + 14, y2: y(0) + 4 }, this.art);
    }

    update({ mu, s }) {
      const { art: svg, x, data, eps } = this;
      svg.replaceChildren();
      const z = eps.map((e) => mu + s * e);
      const pathwise = z.map((value) => 2 * (value - data.k));
      const score = z.map((value) => ((value - data.k) ** 2 * (value - mu)) / s ** 2);
      const exact = 2 * (mu - data.k);

      node("text", { x: x.from, y: 14 }, svg, "noise ε, the same whatever the sliders say");
      node("line", { class: "vt-axis", x1: x.from, x2: x.to, y1: 36, y2: 36 }, svg);
      for (let i = 0; i < Math.min(60, eps.length); i++) {
        const [from, to] = [x(eps[i]), x(z[i])];
        node("line", { class: "vt-faint", x1: from, x2: to, y1: 36, y2: 120 }, svg);
        node("circle", { class: "vt-fill-q", cx: from, cy: 36, r: 2.5 }, svg);
        node("circle", { class: "vt-fill-q", cx: to, cy: 120, r: 2.5 }, svg);
      }
      xAxis(svg, x, 120, "z = μ + s ε");
      const k = x(data.k);
      node("path", { class: "vt-other", d: `M${k} 106l-5 -9h10z` }, svg);
      node("text", { x: k, y: 92, "text-anchor": "middle" }, svg, "k");
      this.handle("mu", x(mu), 120, "vt-fill-q");

      const all = [...score, ...pathwise, exact];
      const axis = scale(Math.min(...all), Math.max(...all), 16, this.width - 16);
      this.histogram(pathwise, exact, axis, 168, "vt-fill-q", "pathwise gradients in μ, one a draw");
      this.histogram(score, exact, axis, 280, "vt-fill-other", "score-function gradients in μ");
      node("line", { class: "vt-axis", x1: axis.from, x2: axis.to, y1: 248, y2: 248 }, svg);
      xAxis(svg, axis, 360, "gradient; the tall line is the exact one");
      this.show({
        exact,
        path_mean: mean(pathwise),
        path_variance: variance(pathwise),
        score_mean: mean(score),
        score_variance: variance(score),
      });
    }
  }

  // The exact curve of linear models with fixed noise, and the water level that makes it.
  class RateDistortion extends Figure {
    constructor(root) {
      super(root);
      const { beta, limits } = this.data;
      this.control("beta", "weight β", { min: limits[0], max: limits[1], value: beta, log: true });
      this.button("β = 1", () => this.set({ beta: 1 }));
      this.result("rate", "rate R", 2);
      this.result("distortion", "distortion D", 2);
      this.result("elbo", "ELBO = −(R + D)", 2);
      this.result("survivors", "dimensions in use", 0);
      this.draggable({
        level: (_, y) => this.set({ beta: Math.exp(this.power.invert(y)) / this.data.noise }),
      });
    }

    point(beta) {
      const { eigenvalues, noise, latent_dim: latent } = this.data;
      const level = beta * noise;
      const top = eigenvalues.slice(0, latent);
      const alive = top.filter((value) => value > level);
      const left = sum(top.map((value) => Math.min(value, level))) + sum(eigenvalues.slice(latent));
      const rate = 0.5 * sum(alive.map((value) => Math.log(value / level)));
      const constant = 0.5 * eigenvalues.length * Math.log(2 * Math.PI * noise);
      const distortion = constant + left / (2 * noise);
      return { rate, distortion, elbo: -rate - distortion, survivors: alive.length };
    }

    layout(width) {
      const { limits, points, eigenvalues, latent_dim: latent, noise } = this.data;
      const narrow = width < 520;
      this.resize(width, narrow ? 580 : 300);
      const [low, high] = limits.map(Math.log);
      this.curve = [];
      for (let i = 0; i <= 150; i++) {
        this.curve.push(this.point(Math.exp(low + (i / 150) * (high - low))));
      }
      const across = narrow ? width - 12 : width * 0.6;
      const rates = [...this.curve, ...points].map((p) => p.rate);
      const distortions = [...this.curve, ...points].map((p) => p.distortion);
      this.x = scale(0, Math.max(...rates) * 1.05, 46, across);
      const pad = 0.12 * (Math.max(...distortions) - Math.min(...distortions));
      this.y = scale(Math.min(...distortions) - pad, Math.max(...distortions) + pad, 250, 26);
      const [down, up] = narrow ? [540, 320] : [250, 26];
      const top = eigenvalues.slice(0, latent);
      const floor = Math.min(limits[0] * noise, top[top.length - 1]);
      const ceiling = Math.max(limits[1] * noise, top[0]);
      this.power = scale(Math.log(floor), Math.log(ceiling * 1.1), down, up);
      this.bars = scale(0, top.length, narrow ? 46 : width * 0.6 + 56, width - 12);
    }

    update({ beta }) {
      const { art: svg, x, y, data, power, bars } = this;
      svg.replaceChildren();
      const here = this.point(beta);
      xAxis(svg, x, y.from, "rate, nats");
      yAxis(svg, y, x.from, "distortion, nats");
      // The tangent has slope -β: all its points have the same D + βR.
      const tangent = (r) => here.distortion - beta * (r - here.rate);
      const ends = [0, x.high].flatMap((r) => {
        const clipped = clamp(tangent(r), y.low, y.high);
        return [[here.rate - (clipped - here.distortion) / beta, clipped]];
      });
      node("path", { class: "vt-other", "stroke-dasharray": "3 3", d: path(ends.map(([r, d]) => [x(r), y(d)])) }, svg);
      node("path", { class: "vt-ink", d: path(this.curve.map((p) => [x(p.rate), y(p.distortion)])) }, svg);
      for (const { rate, distortion, label } of data.points) {
        const at = [x(rate), y(distortion)];
        node("rect", { class: "vt-other", x: at[0] - 5, y: at[1] - 5, width: 10, height: 10 }, svg);
        node("text", { class: "vt-halo", x: at[0] + 9, y: at[1] + 16 }, svg, label);
      }
      node("circle", { class: "vt-fill-q", cx: x(here.rate), cy: y(here.distortion), r: 7 }, svg);

      const level = beta * data.noise;
      const marks = [];
      for (let p = Math.ceil(power.low / Math.LN10); p <= power.high / Math.LN10; p++) {
        marks.push([p * Math.LN10, minus(String(10 ** p))]);
      }
      yAxis(svg, power, bars.from, "variances; dashed: level β σ²", marks);
      const wide = ((bars.to - bars.from) / (bars.high - bars.low)) * 0.75;
      data.eigenvalues.slice(0, data.latent_dim).forEach((value, i) => {
        const tall = power.from - power(Math.log(value));
        const box = { x: bars(i) + 2, width: wide, y: power(Math.log(value)), height: tall };
        node("rect", { class: value > level ? "vt-fill-q" : "vt-axis", ...box }, svg);
      });
      const at = power(Math.log(level));
      node("line", { class: "vt-ink vt-level", x1: bars.from, x2: bars.to, y1: at, y2: at }, svg);
      this.handle("level", bars.to, at, "vt-fill-q");
      this.show(here);
    }
  }

  // Bytes written as base64, as numbers of one type.
  function unpack(text, Type) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Type(bytes.buffer);
  }

  // The plane of a VAE with two latent numbers: labels where the encoder put them, and the
  // decoder's mean at the place that is chosen.
  class LatentPlane extends Figure {
    constructor(root) {
      super(root);
      const { z, limit, decoder } = this.data;
      this.canvas = node("canvas", { role: "img" }, this.stage);
      const [height, width] = this.data.image_shape;
      Object.assign(this.canvas, { width, height });
      // Two layers, of which the second was cut in two narrow ones and rounded to integers.
      this.layers = Object.fromEntries(
        Object.entries(decoder).map(([name, [type, unit, text]]) => {
          const whole = unpack(text, { f4: Float32Array, i2: Int16Array }[type]);
          return [name, Float32Array.from(whole, (value) => value * unit)];
        }),
      );
      this.control("z1", "z₁", { min: -limit, max: limit, value: z[0], step: 0.05 });
      this.control("z2", "z₂", { min: -limit, max: limit, value: z[1], step: 0.05 });
      this.result("ink", "ink, in pixels", 1);
      this.result("nearest", "nearest test digit");
      this.draggable({
        plane: (x, y) => this.set({ z1: this.x.invert(x), z2: this.y.invert(y) }),
      });
      // The colour of the ink is that of the text, which changes with the theme.
      const theme = new MutationObserver(() => this.changed());
      theme.observe(document.documentElement, { attributes: true });
    }

    layout(width) {
      const side = Math.min(width, 430);
      this.resize(side, side + 20);
      const { limit, points } = this.data;
      this.x = scale(-limit, limit, 34, side - 10);
      this.y = scale(-limit, limit, side - 20, 24);
      this.art.replaceChildren();
      xAxis(this.art, this.x, this.y.from, "z₁");
      yAxis(this.art, this.y, this.x.from, "z₂");
      for (const [z1, z2, label] of points) {
        const place = { x: this.x(z1), y: this.y(z2) + 4, "text-anchor": "middle" };
        node("text", { class: "vt-digit", ...place }, this.art, String(label));
      }
      this.cursor = node("g", {}, this.art);
      const box = { x: this.x.from, y: this.y.to, width: this.x.to - this.x.from };
      const height = this.y.from - this.y.to;
      this.grips.replaceChildren();
      node("rect", { class: "vt-pad", "data-drag": "plane", ...box, height }, this.grips);
    }

    decode(z1, z2) {
      const { w1, b1, narrow, wide, bias } = this.layers;
      const hidden = b1.map((b, i) => Math.max(0, w1[2 * i] * z1 + w1[2 * i + 1] * z2 + b));
      const rank = narrow.length / hidden.length;
      const code = new Float32Array(rank);
      for (let r = 0; r < rank; r++) {
        for (let i = 0; i < hidden.length; i++) code[r] += narrow[r * hidden.length + i] * hidden[i];
      }
      return bias.map((b, pixel) => {
        let logit = b;
        for (let r = 0; r < rank; r++) logit += wide[pixel * rank + r] * code[r];
        return 1 / (1 + Math.exp(-logit));
      });
    }

    update({ z1, z2 }) {
      const ink = this.decode(z1, z2);
      const context = this.canvas.getContext("2d");
      const image = context.createImageData(this.canvas.width, this.canvas.height);
      const colour = getComputedStyle(this.root).color.match(/[\d.]+/g).map(Number);
      ink.forEach((value, i) => image.data.set([...colour.slice(0, 3), 255 * value], 4 * i));
      context.putImageData(image, 0, 0);
      const near = this.data.points.reduce((best, point) =>
        Math.hypot(point[0] - z1, point[1] - z2) < Math.hypot(best[0] - z1, best[1] - z2)
          ? point
          : best,
      );
      this.canvas.setAttribute(
        "aria-label",
        `What the decoder draws at z = (${format(z1, 2)}, ${format(z2, 2)})`,
      );
      this.cursor.replaceChildren();
      const [x, y] = [this.x(z1), this.y(z2)];
      node("line", { class: "vt-other", x1: x, x2: x, y1: this.y.from, y2: this.y.to }, this.cursor);
      node("line", { class: "vt-other", x1: this.x.from, x2: this.x.to, y1: y, y2: y }, this.cursor);
      node("circle", { class: "vt-handle vt-fill-other", cx: x, cy: y, r: 9 }, this.cursor);
      this.show({ ink: sum(Array.from(ink)), nearest: String(near[2]) });
    }
  }

  const KINDS = {
    bound: Bound,
    mean_field: MeanField,
    reparameterisation: Reparameterisation,
    rate_distortion: RateDistortion,
    latent_plane: LatentPlane,
  };

  function wake() {
    if (!document.getElementById("vt-style")) {
      node("style", { id: "vt-style" }, document.head, STYLE);
    }
    for (const root of document.querySelectorAll(".vt-live:not([data-ready])")) {
      new KINDS[root.dataset.kind](root).start();
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", wake);
  else wake();
})();
