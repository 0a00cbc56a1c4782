// What can be scrolled sideways can be scrolled by keyboard too, and takes part in the tab order
// only then. The theme does so for code; formulas and tables change their size later.
const scrollers =
  "div.math, .pst-scrollable-table-container, .cell_output .text_html, a.image-reference";

const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const scroller = target.closest(scrollers);
    if (scroller.scrollWidth > scroller.clientWidth) scroller.tabIndex = 0;
    else scroller.removeAttribute("tabindex"); // a link stays in the order without it
    showCut(scroller);
  }
});

// Without a visible scroll bar a table that is cut at the edge of a column looks complete.
function showCut(scroller) {
  const left = scroller.scrollWidth - scroller.clientWidth - scroller.scrollLeft;
  scroller.classList.toggle("cut-right", left > 1);
}

document.addEventListener("DOMContentLoaded", () => {
  for (const scroller of document.querySelectorAll(scrollers)) {
    observer.observe(scroller);
    scroller.addEventListener("scroll", () => showCut(scroller), { passive: true });
  }
});

// Formulas are typeset a few at a time, the nearest first, and the page answers in between.
// `MathJax.startup.promise` waits for the last one.
if (window.MathJax?.config?.startup) {
  MathJax.config.startup.pageReady = async () => {
    const places = document.querySelectorAll(".math, .output_area, .mathjax_process");
    const distances = new Map(
      [...places].map((place) => [place, Math.abs(place.getBoundingClientRect().top)]),
    );
    const waiting = [...places].sort((a, b) => distances.get(a) - distances.get(b));
    while (waiting.length) {
      await MathJax.typesetPromise(waiting.splice(0, 4));
      await new Promise((resume) => setTimeout(resume));
    }
  };
}
